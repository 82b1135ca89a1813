"""A BlockMask alone, without a score_mod: plans for the engines of attend()."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Hashable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from foveal.common.memo import outside
from foveal.ops.mods.cells import ASK, EVERYTHING, MOST_KEPT
from foveal.ops.mods.plan import Part, Plan, Tiles
from foveal.patterns import Pattern
from foveal.patterns.tiling import Grid, Lookup, Places, Runs, TileGroup, Tiling

SHARED = 4
"""Tiles for each mask from which a group of tiles is split, so that they share it."""

_SERIAL = itertools.count()
_LOCK = threading.Lock()
_KEPT: weakref.WeakKeyDictionary[Part, tuple[_Planned, ...] | None] = weakref.WeakKeyDictionary()


class Listing:
    """A tile plan that is what it is, and equal to itself alone."""

    def __init__(self, tiling: Tiling) -> None:
        self.tiling = tiling
        self._key = ("foveal.ops.mods.fast", next(_SERIAL))

    def cache_key(self) -> Hashable:
        return self._key

    def has_fixed_key(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"{self.tiling.num_queries} x {self.tiling.num_keys}"


@dataclass(frozen=True, eq=False)
class _Planned(Pattern):
    """What a BlockMask says of some sequences and heads, as a pattern of fixed lengths."""

    listing: Listing

    opaque = True

    @property
    def natural_length(self) -> int:
        return self.listing.tiling.num_keys

    def check_length(self, length: int) -> None:
        tiling = self.listing.tiling
        if length > max(tiling.num_queries, tiling.num_keys):
            raise ValueError(
                f"the BlockMask is of {tiling.num_queries} queries and {tiling.num_keys} keys, "
                f"got {length=}."
            )

    def num_queries(self, n_keys: int) -> int:
        return self.listing.tiling.num_queries

    def tiles(self, length: int) -> Tiling:
        return self.listing.tiling

    def num_pairs(self, length: int) -> int:
        return self.listing.tiling.num_pairs

    def allows(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        tiling = self.listing.tiling
        dense = self.mask(tiling.num_queries, tiling.num_keys, q_idx.device)
        return dense[q_idx, k_idx]

    def mask(
        self,
        n_queries: int,
        n_keys: int | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        tiling = self.listing.tiling
        found = torch.zeros(tiling.num_queries, tiling.num_keys, dtype=torch.bool, device="cpu")
        for group in tiling.groups:
            queries, keys = group.queries.index(), group.key_index()
            if group.mask is None:
                found[queries[:, :, None], keys[:, None]] = True
                continue
            tile, query, key = group.mask.expand(len(keys), -1, -1).nonzero().T
            found[queries[tile, query], keys[tile, key]] = True
        return found[:n_queries, : tiling.num_keys if n_keys is None else n_keys].to(device)


def patterns(plan: Plan, part: Part) -> tuple[_Planned, ...] | None:
    """A part as patterns, whose results are to be merged; None where its masks are too many.

    One, or where the masks of whole tiles would be large two: of the cells that are full, which
    need none, and of the others.
    """
    with _LOCK:
        if part in _KEPT:
            return _KEPT[part]
    with outside():
        tilings = _tilings(plan, part)
        made = None if tilings is None else tuple([_Planned(Listing(one)) for one in tilings])
    with _LOCK:
        return _KEPT.setdefault(part, made)


def _tilings(plan: Plan, part: Part) -> list[Tiling] | None:
    if any(one.kinds is not None and bool((one.kinds == ASK).any()) for one in part.tiles):
        return None
    if _mask_bytes(plan, part.tiles) <= MOST_KEPT // 4:
        return [_tiling(plan, part.tiles)]
    full = tuple([own for one in part.tiles for own in _only(one, True)])
    rest = tuple([own for one in part.tiles for own in _only(one, False)])
    if _mask_bytes(plan, rest) > MOST_KEPT:
        return None
    return [_tiling(plan, half) for half in (full, rest) if half]


def _mask_bytes(plan: Plan, tiles: tuple[Tiles, ...]) -> int:
    shapes = [
        own.num_q * own.read.shape[1] * len(own.kinds)
        for one in tiles
        for own in _by_mask(one)
        if own.kinds is not None
    ]
    return sum(shapes) * plan.cells.columns.size


def _only(tiles: Tiles, full: bool) -> Iterator[Tiles]:
    """The cells of tiles that are full, or those that are not."""
    if tiles.kinds is None:
        yield from (tiles,) if full else ()
        return
    kinds = tiles.kinds.expand_as(tiles.read)
    wanted = kinds == EVERYTHING if full else kinds > EVERYTHING
    count = wanted.sum(1)
    order = (~wanted).to(torch.uint8).argsort(dim=1, stable=True)
    for width in torch.unique(count[count > 0]).tolist():
        here = (count == width).nonzero()[:, 0]
        chosen = order[here, :width]
        yield Tiles(
            tiles.number[here],
            tiles.num_q,
            tiles.read[here].gather(1, chosen),
            None if full else kinds[here].gather(1, chosen),
        )


def _by_mask(tiles: Tiles) -> Iterator[Tiles]:
    """Tiles that share one mask, where they are many."""
    if tiles.kinds is None:
        yield tiles
        return
    rows, where = torch.unique(tiles.kinds, dim=0, return_inverse=True)
    if len(rows) > 1 and len(tiles.kinds) < SHARED * len(rows):
        yield tiles
        return
    for number, row in enumerate(rows):
        here = (where == number).nonzero()[:, 0]
        yield Tiles(tiles.number[here], tiles.num_q, tiles.read[here], row[None])


def _tiling(plan: Plan, tiles: tuple[Tiles, ...]) -> Tiling:
    groups = [
        TileGroup(_queries(plan, one), (_keys(plan, one),), plan.mask(one))
        for group in tiles
        for one in _by_mask(group)
    ]
    return Tiling(*plan.lengths, tuple(groups))


def _queries(plan: Plan, tiles: Tiles) -> Places:
    return _grid(plan.cells.rows.first[tiles.number], tiles.num_q) or Lookup(plan.queries(tiles))


def _keys(plan: Plan, tiles: Tiles) -> Places:
    """Keys as a grid where they are consecutive, else as runs, else one by one."""
    columns = plan.cells.columns
    size, first = columns.size, columns.first[tiles.read]
    if bool((columns.end - columns.first)[tiles.read].eq(size).all()):
        consecutive = bool((first.diff(dim=1) == size).all())
        grid = _grid(first[:, 0], first.shape[1] * size) if consecutive else None
        if grid is not None:
            return grid
        if size > 1 and plan.lengths[1] % size == 0 and bool((first % size == 0).all()):
            return Runs(first // size, size)
    return Lookup(plan.keys(tiles))


def _grid(first: Tensor, count: int) -> Grid | None:
    """Consecutive tokens from each of `first`, if these are evenly spaced."""
    steps = first.diff()
    if not bool((steps == steps[:1]).all()):
        return None
    step = int(steps[0]) if len(steps) else 0
    return Grid(int(first[0]), ((len(first), step),), ((count, 1),))
