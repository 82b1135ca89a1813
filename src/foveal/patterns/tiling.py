"""The tile plan: which queries are computed together, and which keys they read.

A pattern is cut into groups of equal tiles. All tiles of a group have the same shape, lie on a
regular grid and share one mask, so a plan holds O(groups) numbers however long the sequence is.
Implementations read q, k and v through these grids in place.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foveal.patterns.grids import Grid, Lookup, Places, Runs, Scattered, offsets

__all__ = [
    "MAX_TILE",
    "Axis",
    "Grid",
    "Lookup",
    "Places",
    "Run",
    "Runs",
    "Scattered",
    "TileGroup",
    "Tiling",
    "axes_groups",
    "consecutive",
    "listed_groups",
    "offsets",
    "rectangle",
]

MAX_TILE = 64
"""Most queries in one tile: the shape at which scores, keys and values stay in cache."""

WHOLE_BLOCK = 256
"""Most queries in a tile whose queries share their keys, so that it needs no mask."""


@dataclass(frozen=True, eq=False)
class TileGroup:
    """Tiles of one shape.

    queries: where the queries stand, (num_tiles, tile_q).
    keys: one or more places whose items lie side by side; together (num_tiles, tile_k).
    mask: (1 or num_tiles, tile_q, tile_k) bool, True = attend; None when every pair is allowed.
    """

    queries: Places
    keys: tuple[Places, ...]
    mask: Tensor | None = None

    @property
    def num_tiles(self) -> int:
        return self.queries.num_tiles

    @property
    def tile_q(self) -> int:
        return self.queries.num_items

    @property
    def tile_k(self) -> int:
        return sum(part.num_items for part in self.keys)

    def key_index(self) -> Tensor:
        """Key positions: (num_tiles, tile_k) int64."""
        return torch.cat([part.index() for part in self.keys], dim=1)

    @functools.cached_property
    def every_query_reads(self) -> bool:
        """Whether each query of the group has at least one key."""
        return self.mask is None or bool(self.mask.any(-1).all())

    def num_pairs(self) -> int:
        """Allowed pairs in all tiles of the group."""
        if self.mask is None:
            return self.num_tiles * self.tile_q * self.tile_k
        per_mask = int(self.mask.sum())
        return per_mask * (self.num_tiles // self.mask.shape[0])


@dataclass(frozen=True, eq=False)
class Tiling:
    """The whole plan: every query stands in exactly one group, or in none if it reads nothing.

    borders: where documents that do not look at each other begin, ascending: (query, key) each.
    """

    num_queries: int
    num_keys: int
    groups: tuple[TileGroup, ...]
    borders: tuple[tuple[int, int], ...] = ()

    @property
    def visited(self) -> int:
        """Pairs that an implementation computes, masked ones included."""
        return sum(g.num_tiles * g.tile_q * g.tile_k for g in self.groups)

    @functools.cached_property
    def num_pairs(self) -> int:
        return sum(group.num_pairs() for group in self.groups)

    @functools.cached_property
    def covers_all(self) -> bool:
        """Whether every query stands in a tile."""
        return sum(g.num_tiles * g.tile_q for g in self.groups) == self.num_queries

    @functools.cached_property
    def unread(self) -> Tensor | None:
        """Keys that stand in a tile although no query reads them: (keys,) int64, or None.

        What they hold must not matter, be it NaN.
        """
        if all(group.mask is None or bool(group.mask.any(1).all()) for group in self.groups):
            return None
        listed, read = (
            torch.zeros(self.num_keys, dtype=torch.bool, device="cpu") for _ in range(2)
        )
        for group in self.groups:
            keys = group.key_index()
            listed[keys] = True
            used = torch.ones((), device="cpu") if group.mask is None else group.mask.any(1)
            read[keys[used.bool().expand(keys.shape)]] = True
        unread = (listed & ~read).nonzero()[:, 0]
        return unread if len(unread) else None

    @property
    def num_bytes(self) -> int:
        """About what it takes in memory, objects of Python included; masks that are shared too."""
        return sum(
            4096 + (0 if one.mask is None else one.mask.numel()) + 8 * one.num_tiles
            for one in self.groups
        )

    def shift(self, queries: int, keys: int, num_queries: int, num_keys: int) -> Tiling:
        """The same plan for tokens that start at later positions of a longer sequence."""
        groups = tuple(
            TileGroup(g.queries.shift(queries), tuple(part.shift(keys) for part in g.keys), g.mask)
            for g in self.groups
        )
        borders = tuple((query + queries, key + keys) for query, key in self.borders)
        return Tiling(num_queries, num_keys, groups, borders)


# ---------------------------------------------------------------------------------------------
# building plans
# ---------------------------------------------------------------------------------------------

Allows = Callable[[Tensor, Tensor], Tensor]
Reach = Callable[[int], tuple[int, int]]
"""query coordinate -> half-open range of key coordinates on one axis (before clipping)."""


@dataclass(frozen=True)
class Run:
    """Equal tiles along one axis, evenly spaced, and the keys that each of them reads."""

    first: int  # coordinate of the first query
    count: int  # number of tiles
    step: int  # from one tile to the next
    length: int  # queries in a tile
    first_key: int
    key_step: int
    num_keys: int
    spacing: int = 1  # from one query (or key) to the next inside a tile


@dataclass(frozen=True)
class Axis:
    """One axis of a sequence or image.

    length: number of coordinates.
    tile: queries in a tile.
    reach: coordinate -> (first, last + 1) of the keys it may read; clipped to the axis.
    spacing: step between neighbouring keys (dilation); tiles then hold one residue class.
    tile_breaks: tiles never straddle a multiple of this, counted from `first_break`.
    anchored: False where the mask depends on the ranges only, not on the query's place.
    scale: key coordinates from one query to the next (strided queries).
    part: (first, last + 1) of the queries that are wanted; all when None.
    """

    length: int
    tile: int
    reach: Reach
    spacing: int = 1
    tile_breaks: int | None = None
    anchored: bool = True
    scale: int = 1
    part: tuple[int, int] | None = None
    first_break: int = 0

    @property
    def num_queries(self) -> int:
        return -(-self.length // self.scale)

    def runs(self) -> list[Run]:
        """The tiles of this axis, gathered into evenly spaced runs of equal ones."""
        found: dict[tuple, list[tuple[int, int]]] = {}
        for residue in range(min(self.spacing, self.num_queries)):
            for first, length in self._tiles(residue):
                signature, first_key = self._signature(first, length)
                found.setdefault(signature, []).append((first, first_key))
        runs = []
        for (length, num_keys, *_), starts in found.items():
            runs.extend(self._even(sorted(starts), length, num_keys))
        return runs

    def _tiles(self, residue: int) -> Iterable[tuple[int, int]]:
        """(first coordinate, number of queries) of each tile in one residue class."""
        start, limit = self.part or (0, self.num_queries)
        cuts, offset = self.tile_breaks or max(1, limit), self.first_break
        for begin in range((start - offset) // cuts * cuts + offset, limit, cuts):
            last = min(begin + cuts, limit)
            step = self.tile * self.spacing
            for first in range(max(begin, start) + residue, last, step):
                yield first, min(self.tile, -(-(last - first) // self.spacing))

    def _signature(self, first: int, length: int) -> tuple[tuple, int]:
        ranges = []
        for i in range(length):
            low, high = self.reach(first + i * self.spacing)
            ranges.append((max(low, 0), min(high, self.length)))
        low = min(r[0] for r in ranges)
        high = max(r[1] for r in ranges)
        first_key = low + (first * self.scale - low) % self.spacing
        num_keys = max(0, -(-(high - first_key) // self.spacing))
        relative = tuple((a - first_key, b - first_key) for a, b in ranges)
        place = first * self.scale - first_key if self.anchored or self.spacing > 1 else 0
        return (length, num_keys, place, relative), first_key

    def _even(self, starts: Sequence[tuple[int, int]], length: int, num_keys: int) -> list[Run]:
        """Cut a list of (first query, first key) into evenly spaced runs."""
        runs: list[Run] = []
        i = 0
        while i < len(starts):
            j = i + 1
            step = key_step = 0
            if j < len(starts):
                step = starts[j][0] - starts[i][0]
                key_step = starts[j][1] - starts[i][1]
                while (
                    j < len(starts)
                    and starts[j][0] - starts[j - 1][0] == step
                    and starts[j][1] - starts[j - 1][1] == key_step
                ):
                    j += 1
            first, first_key = starts[i]
            runs.append(
                Run(first, j - i, step, length, first_key, key_step, num_keys, self.spacing)
            )
            i = j
        return runs


def axes_groups(
    axes: Sequence[Axis],
    strides: Sequence[int],
    allows: Allows,
    check: bool = True,
    query_strides: Sequence[int] | None = None,
) -> list[TileGroup]:
    """Groups of the product of axes: each combination of runs is one group.

    strides: positions from one coordinate to the next on each axis, for keys and, where
    `query_strides` is not given, for queries.

    The pattern must be the same in all tiles of a run up to the shift of the tile; the mask is
    then that of the first tile. `check=False` says that every pair inside the ranges is allowed.
    """
    groups = []
    for runs in itertools.product(*(axis.runs() for axis in axes)):
        if any(run.num_keys == 0 for run in runs):
            continue
        dims = list(zip(runs, query_strides or strides, strict=True))
        queries = Grid(
            sum(run.first * s for run, s in dims),
            tuple((run.count, run.step * s) for run, s in dims),
            tuple((run.length, run.spacing * s) for run, s in dims),
        )
        dims = list(zip(runs, strides, strict=True))
        keys = Grid(
            sum(run.first_key * s for run, s in dims),
            tuple((run.count, run.key_step * s) for run, s in dims),
            tuple((run.num_keys, run.spacing * s) for run, s in dims),
        )
        mask = _first_tile_mask(queries, keys, allows) if check else None
        groups.append(TileGroup(queries, (keys,), mask))
    return groups


def _first_tile_mask(queries: Grid, keys: Grid, allows: Allows) -> Tensor | None:
    mask = allows(queries.first_tile()[:, None], keys.first_tile()[None, :])
    return None if bool(mask.all()) else mask[None]


def listed_groups(
    allows: Allows,
    query_tiles: Iterable[Tensor],
    candidates: Callable[[Tensor], Tensor],
    round_to: int = 16,
) -> list[TileGroup]:
    """Groups for tiles without a regular shape: keys are listed one by one and masked exactly.

    query_tiles: positions (tile_q,) of each tile.
    candidates: query positions (tile_q,) -> sorted key positions that any of them may read.
    round_to: key lists are padded (masked) to a multiple of this, so that few shapes arise.
    """
    found: dict[tuple[int, int], list[tuple[Tensor, Tensor, Tensor]]] = {}
    for queries in query_tiles:
        keys = candidates(queries)
        mask = allows(queries[:, None], keys[None, :])
        used = mask.any(0)
        keys, mask = keys[used], mask[:, used]
        if not len(keys):
            continue
        pad = -len(keys) % min(round_to, 1 << (len(keys) - 1).bit_length())
        keys = torch.nn.functional.pad(keys, (0, pad), value=int(keys[-1]))
        mask = torch.nn.functional.pad(mask, (0, pad))
        found.setdefault((len(queries), len(keys)), []).append((queries, keys, mask))
    groups = []
    for tiles in found.values():
        q, k, m = (torch.stack(part) for part in zip(*tiles, strict=True))
        groups.append(TileGroup(Lookup(q), (Lookup(k),), None if bool(m.all()) else m))
    return groups


def rectangle(first: int, stop: int, first_key: int, last_key: int) -> list[TileGroup]:
    """Queries [first, stop), all of which read the keys [first_key, last_key) and no others."""
    groups = []
    whole, rest = divmod(max(0, stop - first), MAX_TILE)
    for start, count, size in ((first, whole, MAX_TILE), (stop - rest, 1, rest)):
        if count and size and first_key < last_key:
            queries = Grid(start, ((count, MAX_TILE),), ((size, 1),))
            keys = Grid(first_key, ((count, 0),), ((last_key - first_key, 1),))
            groups.append(TileGroup(queries, (keys,)))
    return groups


def consecutive(length: int, first: int = 0, tile: int = MAX_TILE) -> list[Tensor]:
    """Query positions [first, length) in tiles of consecutive tokens."""
    return [
        torch.arange(i, min(i + tile, length), device="cpu") for i in range(first, length, tile)
    ]
