"""A part of a plan: the tiles of some of the queries, as they are in the whole."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from foveal.patterns.grids import Lookup, Places, Runs, Scattered, edges
from foveal.patterns.tiling import TileGroup, Tiling


def cut(plan: Tiling, first: int, count: int) -> Tiling:
    """The plan of the queries [first, first + count) alone, which it numbers from 0.

    Whole tiles stay what they are, so that equal ones go on sharing a mask; of a tile that lies
    across a border only its queries within are left.
    """
    groups = [part for one in plan.groups for part in _cut_group(one, first, first + count)]
    return Tiling(count, plan.num_keys, tuple(groups)).shift(-first, 0, count, plan.num_keys)


def _cut_group(group: TileGroup, low: int, high: int) -> Iterator[TileGroup]:
    starts, ends = edges(group.queries)
    whole = (starts >= low) & (ends < high)
    if bool(whole.all()):
        yield group
        return
    if bool(whole.any()):
        yield _some(group, whole.nonzero()[:, 0])
    across = ~whole & (starts < high) & (ends >= low)
    if bool(across.any()):
        yield from _inside(group, across.nonzero()[:, 0], low, high)


def _some(group: TileGroup, tiles: Tensor) -> TileGroup:
    mask = group.mask
    if mask is not None and len(mask) > 1:
        mask = mask[tiles]
    keys = tuple(_take(place, tiles) for place in group.keys)
    return TileGroup(_take(group.queries, tiles), keys, mask)


def _take(place: Places, tiles: Tensor) -> Places:
    """Some of the tiles, by their ascending numbers."""
    if isinstance(place, Lookup):
        return Lookup(place.positions[tiles])
    if isinstance(place, Runs):
        return Runs(place.units[tiles], place.size)
    if isinstance(place, Scattered):
        return Scattered(place.starts[tiles], place.items)
    starts = place.starts()[tiles]
    inner = math.prod(count for count, _ in place.tiles[1:])
    rows, rest = divmod(len(tiles), inner)
    if not rest and int(tiles[0]) % inner == 0 and int(tiles[-1] - tiles[0]) == len(tiles) - 1:
        outer = (rows, place.tiles[0][1])
        return replace(place, start=int(starts[0]), tiles=(outer, *place.tiles[1:]))
    return Scattered(starts, place.items)


def _inside(group: TileGroup, tiles: Tensor, low: int, high: int) -> Iterator[TileGroup]:
    """Of tiles across a border the queries within; tiles that lie alike stay together."""
    part = _some(group, tiles)
    queries = part.queries.index()
    kept = (queries >= low) & (queries < high)
    kinds, kind = kept.unique(dim=0, return_inverse=True)
    for number, items in enumerate(kinds):
        if not bool(items.any()):
            continue
        mine = (kind == number).nonzero()[:, 0]
        one = _some(part, mine)
        mask = None if one.mask is None else one.mask[:, items]
        if mask is not None and bool(mask.all()):
            mask = None
        yield TileGroup(Lookup(queries[mine][:, items]), one.keys, mask)
