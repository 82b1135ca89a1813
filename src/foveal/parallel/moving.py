"""Rows that go from rank to rank, with their gradients on the way back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from foveal.parallel.ranks import Ranks


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, ranks: Ranks, sent: list[int], received: list[int]
    ) -> Tensor:
        ctx.ranks, ctx.sizes = ranks, (sent, received)
        return ranks.exchange(rows, sent, received)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        sent, received = ctx.sizes
        return ctx.ranks.exchange(grads[0], received, sent), None, None, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, ranks: Ranks, sizes: list[int]) -> Tensor:
        ctx.ranks, ctx.sizes = ranks, sizes
        return ranks.gather(rows, sizes)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        ranks, sizes = ctx.ranks, ctx.sizes
        mine = sizes[ranks.rank]
        parts = ranks.exchange(grads[0], sizes, [mine] * ranks.size)
        # in the order of ranks: the same sum wherever it is computed
        return parts.unflatten(0, (ranks.size, mine)).sum(0), None, None


def exchange(rows: Tensor, ranks: Ranks, sent: list[int], received: list[int]) -> Tensor:
    """Rows (sum of `sent`, features), those for rank 0 first -> what the others sent here."""
    return _Exchange.apply(rows, ranks, sent, received)


def gather(rows: Tensor, ranks: Ranks, sizes: list[int]) -> Tensor:
    """Rows (own, features) of every rank, in their order: (sum of `sizes`, features)."""
    return _Gather.apply(rows, ranks, sizes)


def of_all(x: Tensor, ranks: Ranks) -> Tensor:
    """A tensor of the same shape (...) on every rank: those of all, (ranks, ...)."""
    return gather(x[None], ranks, [1] * ranks.size)


def agreed(x: Tensor, ranks: Ranks) -> Tensor:
    """What the first rank says, of any shape."""
    return of_all(x.to(ranks.device or x.device), ranks)[0].to(x.device)


def gather_numbers(ranks: Ranks, values: list[int]) -> list[list[int]]:
    """A few whole numbers of every rank, as many on each."""
    if ranks.size == 1:
        return [values]
    own = torch.tensor(values, dtype=torch.int64, device=ranks.device or "cpu")
    found: list[list[int]] = of_all(own, ranks).tolist()
    return found
