"""Sizes that are symbols, of a graph that is being traced for all of their values."""

from __future__ import annotations

import torch
from torch import Tensor


def known(*sizes: int | torch.SymInt) -> bool:
    """Whether sizes are numbers, rather than symbols of a graph that is being exported."""
    return all(isinstance(size, int) for size in sizes)


def take_first(x: Tensor, axis: int, length: int) -> Tensor:
    """The first `length` entries of x (any shape) along an axis.

    A copy with symbols: a slice would ask whether there are so many, which nobody can prove of a
    number that was rounded up.
    """
    if known(*x.shape, length):
        return x.narrow(axis, 0, length)
    return x.index_select(axis, torch.arange(length, device=x.device))
