"""`foveal bench [CASE]`: attention in every implementation beside dense, on this machine."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import tyro

from foveal.bench import find, machine, measure, table
from foveal.cli.parsing import parse

BUDGET = 150.0
"""Seconds that the rounds of all cases may take together, unless rounds are asked for."""


@dataclass(kw_only=True)
class Options:
    """Time attention patterns beside dense attention on this machine; about two minutes.

    Attributes:
        cases: names, or beginnings of names; a short selection unless given.
        device: where to compute; a GPU if there is one.
        rounds: how often each contender runs; as often as fits into the time unless given.
        threads: of the CPU; torch's own number unless given.
        list_cases: only print the names of the cases.
    """

    cases: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    rounds: int | None = None
    threads: int | None = None
    list_cases: bool = False


def main(arguments: list[str]) -> int:
    """Measure, and print a table a case as soon as it is complete."""
    options = parse(Options, arguments, "bench")
    cases = find(options.cases)
    if options.list_cases:
        for case in cases:
            print(f"{case.name:<20} {case.title}")
        return 0
    _check(options)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    cases = [case for case in cases if options.cases or case.quick]
    limits = machine.limits(device)
    print("\n".join(table.heading(machine.describe(device), limits)), flush=True)
    for case in cases:
        start = time.perf_counter()
        rounds = options.rounds or _rounds(case.seconds, len(cases))
        results = measure(case, rounds, device, limits, say=_quiet)
        print("\n".join(table.lines(case, results)), flush=True)
        print(f"    {rounds} rounds, {time.perf_counter() - start:.0f} s\n", flush=True)
    print("\n".join(table.LEGEND))
    return 0


def _check(options: Options) -> None:
    for name in ("rounds", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {name}={value}.")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device='cuda' needs a GPU that torch can use; try --device cpu.")


def _rounds(seconds: float, num_cases: int) -> int:
    return max(3, min(9, math.floor(BUDGET / num_cases / (2 * seconds))))


def _quiet(text: str) -> None:
    if "without" in text:
        print(f"    {text}")
