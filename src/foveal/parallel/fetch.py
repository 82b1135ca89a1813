"""Rows of other ranks beside the own ones: for convolutions, and all that reads neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from foveal.common.checks import as_int
from foveal.parallel.moving import exchange
from foveal.parallel.ranks import Ranks, as_ranks
from foveal.parallel.shares import Span, check_rows, lengths_of, spans_of

Beyond = Literal["zeros", "nothing"]


def fetch(
    x: Tensor,
    before: int = 0,
    after: int = 0,
    *,
    mesh: Any,
    dim: int = 1,
    lengths: Sequence[int] | None = None,
    beyond: Beyond = "zeros",
) -> Tensor:
    """The own part of a tensor that lies on many ranks, with the rows on either side of it.

    The ranks hold consecutive parts, in their order and of any lengths, none included; rows come
    from as many of them as it takes. One exchange, and one in the backward pass, which brings
    gradients home. All ranks call it, with the same numbers.

    Args:
        x: the own part; rows are its dimension `dim`.
        before, after: rows wanted from before the own first, and from after the own last.
        mesh: the ranks: a DeviceMesh of one dimension such as mesh["cp"], or a process group.
        dim: the dimension that is shared among ranks.
        lengths: rows of every rank; None asks them, which is one small exchange more.
        beyond: before the first row of all and after the last there are "zeros", as a padded
            convolution has them, or "nothing", so that the ranks at the ends get fewer rows.

    Returns:
        x with `before + after` rows more along `dim`.

    Raises:
        TypeError: mesh is no group of ranks, or x no tensor.
        ValueError: a number is negative; x is a DTensor or has no such dimension; lengths are not
            what is here.

    Example:
        >>> import torch
        >>> from foveal import parallel
        >>> x = torch.arange(6.0)
        >>> def act(rank):
        ...     return parallel.fetch(parallel.take(x, rank, dim=0), 1, 1, mesh=rank, dim=0)
        >>> parallel.simulate(2, act)
        [tensor([0., 0., 1., 2., 3.]), tensor([2., 3., 4., 5., 0.])]
    """
    before, after = as_int("before", before, 0), as_int("after", after, 0)
    check_rows(x, dim)
    if beyond not in ("zeros", "nothing"):
        raise ValueError(f"beyond must be 'zeros' or 'nothing', got {beyond=}.")
    ranks = as_ranks(mesh)
    sizes = lengths_of(ranks, x.shape[dim], lengths)
    if before + after == 0:
        return x
    spans = spans_of(sizes)
    wanted = [(a - before, b + after) for a, b in spans]
    return rows_of(x, wanted, ranks, sizes, dim, beyond)


def rows_of(
    x: Tensor,
    wanted: Sequence[Span],
    ranks: Ranks,
    sizes: Sequence[int],
    dim: int,
    beyond: Beyond = "zeros",
) -> Tensor:
    """Rows [first, last) of the whole, which each rank names for all: those it `wanted` itself.

    Args:
        x: the own part; rows are its dimension `dim`.
        wanted: for each rank, in the same words on all of them.
        sizes: rows of every rank.
        beyond: as in `fetch`.
    """
    here, length = spans_of(sizes), sum(sizes)
    inside = [(min(max(a, 0), length), min(max(b, 0), length)) for a, b in wanted]
    own = _shared(inside[ranks.rank], here[ranks.rank])
    parts = [x.narrow(dim, own[0] - here[ranks.rank][0], own[1] - own[0])]
    if any(not _holds(span, wish) for span, wish in zip(here, inside, strict=True)):
        parts = _with_foreign(x, parts[0], inside, here, ranks, dim)
    if beyond == "zeros":
        (first, last), (low, high) = wanted[ranks.rank], inside[ranks.rank]
        parts = [_zeros(x, low - first, dim), *parts, _zeros(x, last - high, dim)]
    parts = [part for part in parts if part.shape[dim] or part.requires_grad] or parts[:1]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _with_foreign(
    x: Tensor, mine: Tensor, wanted: Sequence[Span], here: list[Span], ranks: Ranks, dim: int
) -> list[Tensor]:
    """What comes from ranks before this one, the own rows, and what comes from those after."""
    me = ranks.rank
    spans = [_shared(wish, here[me]) if rank != me else (0, 0) for rank, wish in enumerate(wanted)]
    sent = [b - a for a, b in spans]
    given = [x.narrow(dim, a - here[me][0], b - a).movedim(dim, 0) for a, b in spans if b > a] or [
        x.narrow(dim, 0, 0).movedim(dim, 0)
    ]
    asked = [_shared(wanted[me], span) if rank != me else (0, 0) for rank, span in enumerate(here)]
    received = [b - a for a, b in asked]
    rows = torch.cat(given)
    # gloo and NCCL carry no bool everywhere
    plain = rows.to(torch.uint8) if rows.dtype == torch.bool else rows
    found = exchange(plain, ranks, sent, received).to(rows.dtype).movedim(0, dim)
    # even where nothing came: the ranks that sent something wait for this one's gradient
    low, high = found.split([sum(received[:me]), sum(received[me:])], dim)
    return [low, mine, high]


def _shared(one: Span, other: Span) -> Span:
    """Rows of both; none of the other where they do not meet."""
    first, last = max(one[0], other[0]), min(one[1], other[1])
    return (first, last) if first < last else (other[0], other[0])


def _holds(span: Span, wish: Span) -> bool:
    return wish[0] >= wish[1] or (span[0] <= wish[0] and wish[1] <= span[1])


def _zeros(x: Tensor, count: int, dim: int) -> Tensor:
    shape = list(x.shape)
    shape[dim] = count
    return x.new_zeros(shape)
