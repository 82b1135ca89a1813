"""`foveal bench [CASE]`: attention in every implementation beside dense, on this machine."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import tyro

from foveal.cli.parsing import parse

BUDGET = 150.0
"""Seconds that the rounds of all cases may take together, unless rounds are asked for."""

_MOST_THREADS = 1024


@dataclass(kw_only=True)
class Options:
    """Time attention patterns beside dense attention on this machine; about two minutes.

    Attributes:
        cases: names, or beginnings of names; a short selection unless given.
        device: auto, cpu, cuda or cuda:1.
        rounds: how often each contender runs; as often as fits into the time unless given.
        threads: of the CPU; torch's own number unless given.
        list_cases: only print the names of the cases.
        json: print everything as JSON, and nothing else.
    """

    cases: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    device: str = "auto"
    rounds: int | None = None
    threads: int | None = None
    list_cases: bool = False
    json: bool = False


def main(arguments: list[str]) -> int:
    """Measure, and print a table a case as soon as it is complete."""
    options = parse(Options, arguments, "bench")
    from foveal.bench import find

    cases = find(options.cases)
    if options.list_cases:
        _list(cases, options.json)
        return 0
    _check(options)
    device = _prepare(options)
    cases = [case for case in cases if options.cases or case.quick]
    _measure(cases, device, options)
    return 0


def _list(cases: list[Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps({case.name: case.title for case in cases}, indent=2))
        return
    for case in cases:
        print(f"{case.name:<20} {case.title}")


def _check(options: Options) -> None:
    for name, most in (("rounds", 10_000), ("threads", _MOST_THREADS)):
        value = getattr(options, name)
        if value is not None and not 1 <= value <= most:
            raise ValueError(f"{name} must be from 1 to {most:,}, got {name}={value}.")


def _prepare(options: Options) -> str:
    """The kind of device that was asked for, chosen and with so many threads."""
    import torch

    from foveal.training.machine import pick_device

    device = pick_device(options.device)
    if device.type not in ("cpu", "cuda"):
        if options.device != "auto":
            raise ValueError(f"the cases run on a CPU or on CUDA, got --device {options.device}.")
        device = torch.device("cpu")
    if device.index is not None:
        torch.cuda.set_device(device)
    if options.threads:
        torch.set_num_threads(options.threads)
    return device.type


def _measure(cases: list[Any], device: str, options: Options) -> None:
    from foveal.bench import machine, measure, table

    limits = machine.limits(device)
    about = machine.describe(device)
    found: dict[str, Any] = {"machine": about, "limits": limits, "cases": {}}
    say = _nothing if options.json else _print
    say("\n".join(table.heading(about, limits)))
    for case in cases:
        start = time.perf_counter()
        rounds = options.rounds or _rounds(case.seconds, len(cases))
        results = measure(case, rounds, device, limits, say=_nothing if options.json else _quiet)
        found["cases"][case.name] = [asdict(result) for result in results]
        say("\n".join(table.lines(case, results)))
        say(f"    {rounds} rounds, {time.perf_counter() - start:.0f} s\n")
    say("\n".join(table.LEGEND))
    if options.json:
        print(json.dumps(found, indent=2))


def _rounds(seconds: float, num_cases: int) -> int:
    return max(3, min(9, math.floor(BUDGET / num_cases / (2 * seconds))))


def _print(text: str) -> None:
    print(text, flush=True)


def _nothing(text: str) -> None:
    """Say nothing: the output is for a program."""


def _quiet(text: str) -> None:
    if "without" in text:
        print(f"    {text}")
