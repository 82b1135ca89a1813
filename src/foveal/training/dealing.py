"""Processes that score together: each computes a share, and all know what all have found."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

import torch.distributed as dist

from foveal.training.processes import together
from foveal.training.progress import tracked

if TYPE_CHECKING:
    from accelerate import Accelerator

PartT = TypeVar("PartT")
ResultT = TypeVar("ResultT")
_crew: ContextVar[Accelerator | None] = ContextVar("crew", default=None)


@contextlib.contextmanager
def sharing(accelerator: Accelerator | None) -> Iterator[None]:
    """Context in which the processes of an accelerator share what is dealt; None: nobody does."""
    several = accelerator is not None and accelerator.num_processes > 1
    token = _crew.set(accelerator if several else None)
    try:
        yield
    finally:
        _crew.reset(token)


def in_shares(compute: Callable[[int, int], ResultT]) -> list[ResultT]:
    """What `compute(rank, size)` gives for every share, on every process that shares."""
    crew = _crew.get()
    if crew is None:
        return [compute(0, 1)]
    rank, size = crew.process_index, crew.num_processes
    mine = together(crew, lambda: compute(rank, size))
    found: list[Any] = [None] * size
    dist.all_gather_object(found, mine)
    return found


def dealt(parts: Sequence[PartT], compute: Callable[[PartT], ResultT]) -> list[ResultT]:
    """What `compute` gives for each part, in their order, with progress."""
    shares = in_shares(lambda rank, size: [compute(part) for part in tracked(parts[rank::size])])
    return [shares[number % len(shares)][number // len(shares)] for number in range(len(parts))]


def totals_in_shares(compute: Callable[[int, int], tuple[float, float]]) -> tuple[float, float]:
    """Sum and count over all shares."""
    shares = in_shares(compute)
    return sum(total for total, _ in shares), sum(count for _, count in shares)
