"""Which rank has which tokens, and what each must hand to the others."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveal.common.checks import as_int
from foveal.ops.sharded import check_whole
from foveal.parallel.moving import gather_numbers
from foveal.parallel.ranks import Ranks, as_ranks
from foveal.patterns.needs import Stretches, count, listed, within

Span = tuple[int, int]
"""[first, last) rows."""


def lengths_of(ranks: Ranks, own: int, lengths: Sequence[int] | None = None) -> tuple[int, ...]:
    """Tokens of every rank, which are asked where they are not given.

    Raises:
        ValueError: what is given is not what is here.
    """
    if lengths is None:
        return tuple(one for (one,) in gather_numbers(ranks, [own]))
    lengths = tuple(int(one) for one in lengths)
    if len(lengths) != ranks.size or lengths[ranks.rank] != own:
        raise ValueError(
            f"lengths must name the tokens of {ranks.size} ranks, of which rank {ranks.rank} has "
            f"{own}, got lengths={lengths}."
        )
    return lengths


def borders_of(sizes: Sequence[int]) -> list[int]:
    """First token of each rank, then the end."""
    return [0, *itertools.accumulate(sizes)]


def spans_of(sizes: Sequence[int]) -> list[Span]:
    """First token of each rank and the one after its last."""
    return list(itertools.pairwise(borders_of(sizes)))


def cut_evenly(length: int, ranks: int, align: int = 1) -> tuple[int, ...]:
    """Tokens of each rank: nearly equal, in multiples of `align` where there are enough."""
    units = length // align if length >= align * ranks else length
    step = align if length >= align * ranks else 1
    ends = [number * units // ranks * step for number in range(1, ranks)]
    return tuple(b - a for a, b in itertools.pairwise([0, *ends, length]))


def take(x: Tensor, mesh: Any, dim: int = 1, align: int = 1) -> Tensor:
    """The part of a whole sequence that this rank works on.

    Args:
        x: the same on every rank; tokens are its dimension `dim`.
        mesh: the ranks: mesh["cp"], or a process group.
        align: parts begin at multiples of this many tokens where there are enough of them; a
            power of two near a 64th of a part serves pooled patterns best.

    Returns:
        a view of x, as long as an even cut makes it.

    Raises:
        TypeError: x is no tensor, or mesh no group of ranks.
        ValueError: x is a DTensor or has no such dimension, or align is not positive.
    """
    check_rows(x, dim)
    align = as_int("align", align, 1)
    ranks = as_ranks(mesh)
    lengths = cut_evenly(x.shape[dim], ranks.size, align)
    return x.narrow(dim, sum(lengths[: ranks.rank]), lengths[ranks.rank])


def check_rows(x: Any, dim: int) -> None:
    """Raise TypeError or ValueError where x is no plain tensor with such a dimension."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, got {type(x).__name__}.")
    check_whole(x, names=("x",))
    if not -x.ndim <= dim < x.ndim:
        raise ValueError(f"dim={dim} is no dimension of a tensor of shape {tuple(x.shape)}.")


@dataclass(frozen=True)
class Share:
    """What one rank sends and gets so that it has the positions that it needs.

    own: (needed here,) int64, places in this rank's part.
    send: (sum of sent,) int64, places in this rank's part, those for rank 0 first.
    sent, received: rows to and from each rank.
    before: rows that come from ranks before this one.
    whole: whether `own` is all of the part, in order.
    """

    own: Tensor
    send: Tensor
    sent: list[int]
    received: list[int]
    before: int
    whole: bool


def share(needs: Stretches, borders: Sequence[int], ranks: Ranks) -> Share:
    """What every rank hands to the others, which tell each other what they need.

    Args:
        needs: positions that this rank needs, of all ranks together.
        borders: first position of each rank, then the end.
    """
    spans = list(itertools.pairwise(borders))
    me = ranks.rank
    asked = [within(needs, *span) if rank != me else () for rank, span in enumerate(spans)]
    received = [count(runs) for runs in asked]
    wanted = _tell(asked, ranks)
    first, last = spans[me]
    send = [listed(runs) - first for runs in wanted]
    own = listed(within(needs, first, last)) - first
    return Share(
        own,
        torch.cat(send),
        [len(one) for one in send],
        received,
        sum(received[:me]),
        len(own) == last - first,
    )


def _tell(asked: list[Stretches], ranks: Ranks) -> list[Stretches]:
    """Each rank's runs that it wants of another -> the runs that others want of this one."""
    device = ranks.device or "cpu"
    sizes = [len(runs) for runs in asked]
    ones = [1] * ranks.size
    numbers = torch.tensor(sizes, dtype=torch.int64, device=device)
    theirs: list[int] = ranks.exchange(numbers, ones, ones).tolist()
    flat = torch.tensor([run for runs in asked for run in runs], dtype=torch.int64, device=device)
    found = ranks.exchange(flat.reshape(-1, 2), sizes, theirs)
    return [tuple((int(a), int(b)) for a, b in part.tolist()) for part in found.split(theirs)]


class Kept:
    """The latest results of this rank, by key: all ranks keep and forget the same ones."""

    def __init__(self, entries: int = 64) -> None:
        self._entries = entries
        self._results: OrderedDict[Hashable, Any] = OrderedDict()

    def find(self, key: Hashable) -> Any:
        """The result, or None."""
        if key in self._results:
            self._results.move_to_end(key)
        return self._results.get(key)

    def keep(self, key: Hashable, result: Any) -> None:
        self._results[key] = result
        if len(self._results) > self._entries:
            self._results.popitem(last=False)


def kept_by(ranks: Ranks) -> Kept:
    """What these ranks remember."""
    found: Kept | None = getattr(ranks, "kept", None)
    if found is None:
        found = ranks.kept = Kept()  # type: ignore[attr-defined]
    return found
