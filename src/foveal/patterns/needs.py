"""Which keys some queries read, as runs of consecutive ones: what a part of a sequence needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from foveal.common.memo import remember
from foveal.patterns.grids import Grid, Places, Scattered, offsets
from foveal.patterns.tiling import Tiling

MANY = 4096
"""Runs that are no longer sorted to be merged."""

Stretches = tuple[tuple[int, int], ...]
"""Runs [low, high) of positions: ascending, and with a gap between one and the next."""


@remember(entries=1024, mebibytes=16)
def keys_needed(pattern: Any, first: int, last: int, length: int) -> Stretches:
    """The keys that queries [first, last) read, by the tile plan; see `Pattern.needs`."""
    if first >= last:
        return ()
    found: list[tuple[Tensor, Tensor]] = []
    for one in pattern.per_head():
        if _is_unknown(one):
            return ((0, last if one.is_causal else length),)
        found += read_by(plan_of_part(one, first, last - first, length))
    return merged(found)


@remember(entries=8)
def plan_of_part(pattern: Any, first: int, count: int, length: int) -> Tiling:
    """`Pattern._part`, kept for the moment: who asks what a part needs goes on to compute it."""
    plan: Tiling = pattern._part(first, count, length)
    return plan


def _is_unknown(pattern: Any) -> bool:
    """Whether only `allows` tells who reads whom, for one pair at a time."""
    base = next(cls for cls in type(pattern).__mro__ if cls.__name__ == "Pattern")
    names = ("_tiles", "_part", "overlap", "_candidates")
    return all(getattr(type(pattern), name) is getattr(base, name) for name in names)


def read_by(plan: Tiling) -> Iterator[tuple[Tensor, Tensor]]:
    """(first, last + 1) of runs, which may overlap: together the keys that a plan reads."""
    for group in plan.groups:
        start = 0
        for place in group.keys:
            used = None
            if group.mask is not None:
                used = group.mask[:, :, start : start + place.num_items].any(1)
            start += place.num_items
            yield _runs_of(place, used)


def _runs_of(place: Places, used: Tensor | None) -> tuple[Tensor, Tensor]:
    """Runs of the keys at a place; used: (1 or tiles, items) bool, None = all of them."""
    if isinstance(place, Grid | Scattered) and (used is None or len(used) == 1):
        items = offsets(place.items)
        low, high = _consecutive(items if used is None else items[used[0]])
        starts = (place.starts() if isinstance(place, Grid) else place.starts)[:, None]
        return (starts + low).flatten(), (starts + high).flatten()
    keys = place.index()
    return _consecutive(keys.flatten() if used is None else keys[used.expand(keys.shape)])


def _consecutive(keys: Tensor) -> tuple[Tensor, Tensor]:
    """(first, last + 1) of the runs in a list of keys in any order."""
    keys = keys.unique()
    breaks = keys.diff() != 1
    edge = breaks.new_ones(min(1, len(keys)))
    return keys[torch.cat([edge, breaks])], keys[torch.cat([breaks, edge])] + 1


def merged(found: Iterable[tuple[Tensor, Tensor]]) -> Stretches:
    """Ascending runs with gaps between them, from runs (first, last + 1) that may overlap."""
    pieces = [one for one in found if len(one[0])]
    if not pieces:
        return ()
    low, high = (torch.cat(side) for side in zip(*pieces, strict=True))
    if len(low) > MANY:
        return _marked(low, high)
    low, order = low.sort()
    reached = high[order].cummax(0).values
    begins = torch.cat([low.new_ones(1, dtype=torch.bool), low[1:] > reached[:-1]])
    ends = torch.cat([begins[1:], begins.new_ones(1)])
    return tuple(zip(low[begins].tolist(), reached[ends].tolist(), strict=True))


def together(found: Iterable[Stretches]) -> Stretches:
    """What any of several lists of runs covers."""
    runs = [run for one in found for run in one]
    starts, ends = torch.tensor(runs, dtype=torch.int64, device="cpu").reshape(-1, 2).unbind(1)
    return merged([(starts, ends)])


def moved(runs: Stretches, by: int) -> Stretches:
    """Runs, shifted."""
    return tuple((low + by, high + by) for low, high in runs)


def _marked(low: Tensor, high: Tensor) -> Stretches:
    """The same by counting at each position: cheaper where there are many short runs."""
    steps = torch.zeros(int(high.max()) + 1, dtype=torch.int32, device="cpu")
    one = steps.new_ones(1).expand(len(low))
    steps.index_add_(0, low, one).index_add_(0, high, -one)
    inside = (steps.cumsum(0) > 0).to(torch.int8)
    change = inside.diff(prepend=inside.new_zeros(1))
    begins, ends = ((change == way).nonzero()[:, 0].tolist() for way in (1, -1))
    return tuple(zip(begins, ends, strict=True))


def within(runs: Stretches, low: int, high: int) -> Stretches:
    """The part of the runs that lies in [low, high)."""
    return tuple((max(a, low), min(b, high)) for a, b in runs if a < high and b > low)


def count(runs: Stretches) -> int:
    """Positions in runs."""
    return sum(high - low for low, high in runs)


def listed(runs: Stretches) -> Tensor:
    """The positions in runs one by one: (positions,) int64."""
    parts = [torch.arange(low, high, device="cpu") for low, high in runs]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64, device="cpu")


def runs_in(places: Tensor) -> Stretches:
    """Runs of a list of positions (positions,), in any order."""
    return tuple(zip(*(side.tolist() for side in _consecutive(places)), strict=True))
