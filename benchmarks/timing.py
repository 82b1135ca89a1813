"""Taking turns, and memory, for scripts that time what is no case of the registry."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from foveal.bench.measure import peak_memory, turns

__all__ = ["medians", "peak_memory"]


def medians(jobs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of each job: medians over rounds in which the jobs take turns."""
    for job in jobs.values():  # warms up
        job()
    return {name: statistics.median(taken) for name, taken in turns(jobs, rounds).items()}
