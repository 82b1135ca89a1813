"""What a benchmark is: contenders that do the same work, taking turns in one run."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

Job = Callable[[], object]

RUNS = ("forward", "training")
"""What is timed: the forward pass without gradients, or forward and backward together."""


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        name: unique, lower case with dashes.
        title: what is computed, with its sizes, for a reader without the source.
        contenders: names, ours first; the last is the peer that ratios are relative to.
        make: (contender, run, device) -> the job to time. It builds only that contender, since
            memory is measured in a process of its own. It raises ModuleNotFoundError where a
            package is not installed, and the contender is left out.
        runs: which of RUNS, or names of the case's own.
        flops: floating-point operations of a run that the mathematics needs, pairs that a
            pattern forbids left out; none where that is no useful number.
        bytes: bytes that a run must read and write once.
        dtype: of the arithmetic: "float32" or "bfloat16".
        seconds: about how long one round takes, all contenders together.
        quick: whether `foveal bench` without a name includes the case.
        devices: where the case makes sense.
    """

    name: str
    title: str
    contenders: tuple[str, ...]
    make: Callable[[str, str, str], Job]
    runs: tuple[str, ...] = RUNS
    flops: dict[str, float] = field(default_factory=dict)
    bytes: dict[str, float] = field(default_factory=dict)
    dtype: str = "float32"
    seconds: float = 1.0
    quick: bool = False
    devices: tuple[str, ...] = ("cpu", "cuda")

    @property
    def peer(self) -> str:
        return self.contenders[-1]


MODULES = ["foveal.bench.attention"]
"""Modules that hold a list CASES; benchmarks/run.py adds those of its folder."""


def all_cases(modules: Iterable[str] | None = None) -> dict[str, Case]:
    """Every case by name.

    Raises:
        ValueError: two cases have one name.
    """
    found: dict[str, Case] = {}
    for module in MODULES if modules is None else modules:
        for case in importlib.import_module(module).CASES:
            if case.name in found:
                raise ValueError(f"two benchmark cases are called {case.name!r} ({module}).")
            found[case.name] = case
    return found


def find(names: Iterable[str]) -> list[Case]:
    """The named cases, in the order of the registry; a name stands for all that begin with it.

    Raises:
        ValueError: a name fits no case.
    """
    cases, wanted = all_cases(), tuple(names)
    for name in wanted:
        if not any(known.startswith(name) for known in cases):
            raise ValueError(f"there is no case {name!r}; there are {', '.join(cases)}.")
    return [case for case in cases.values() if not wanted or case.name.startswith(wanted)]
