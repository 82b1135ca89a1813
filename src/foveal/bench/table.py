"""Results as text: a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from foveal.bench.case import Case
from foveal.bench.result import Result
from foveal.common import html

HEADERS = ("", "time", "speed", "GFLOP/s", "of limit", "memory")


class Results(list[Result]):
    """What was measured of a case; a notebook shows a table for each of its runs."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case

    def _repr_html_(self) -> str:
        tables = []
        for run in self.case.runs:
            own = [row(result, self.case.peer) for result in self if result.run == run]
            if not own:
                continue
            tables.append(html.table(own, title=f"{self.case.title}: {run}", head=HEADERS))
        return "".join(tables)


def row(result: Result, peer: str) -> tuple[str, ...]:
    """The cells of one contender; speed is relative to the peer."""
    speed = "" if result.times_peer is None else f"{result.times_peer:.2f} x"
    return (
        result.contender,
        duration(result.seconds),
        "1 (peer)" if result.contender == peer else speed,
        "" if result.gflops is None else f"{result.gflops:.0f}",
        "" if result.share_of_products is None else f"{result.share_of_products:.0%}",
        "" if result.extra_bytes is None else size(result.extra_bytes),
    )


def duration(seconds: float) -> str:
    """Three digits: "1.53 s", "24.8 ms", "310 us"."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return (
                f"{seconds / scale:.3g} {unit}" if seconds < 1000 * scale else f"{seconds:.0f} s"
            )
    return f"{seconds * 1e6:.0f} us"


def size(count: int) -> str:
    """Bytes in MB."""
    return f"{count / 1e6:,.0f} MB"


def lines(case: Case, results: Sequence[Result]) -> list[str]:
    """A block for one case: its title, then a table for each run."""
    text = [case.name, f"  {case.title}"]
    for run in case.runs:
        own = [row(result, case.peer) for result in results if result.run == run]
        text += _aligned([(run, *HEADERS[1:]), *own])
    return [*text, ""]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "    "
        + "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        for cells in rows
    ]


def heading(machine: dict[str, Any], limits: dict[str, float]) -> list[str]:
    """Where and with what it was measured, and the limits that shares refer to."""
    threads = f"{machine['threads']} threads"
    if machine["device"] == "cuda":
        threads = "CUDA"
    return [
        f"{machine['processor']}, {threads}, torch {machine['torch']}, {machine['date']}",
        f"limits measured now: matrix products {limits['float32'] / 1e9:,.0f} GFLOP/s in float32, "
        f"{limits['bfloat16'] / 1e9:,.0f} in bfloat16; copying {limits['bytes'] / 1e9:,.0f} GB/s",
        "",
    ]


LEGEND = [
    "time: median of rounds in which all take turns. speed: how many times as fast as the peer,",
    "the last row. GFLOP/s: of allowed pairs only. of limit: share of the limit of products.",
    "memory: what one call adds to a fresh process.",
]
