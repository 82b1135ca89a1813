"""Plans of documents under a pattern that asks for distances only, all tiles at once.

A tile of such a plan is five numbers, so a plan is one tensor. The native kernel takes it as it
is, for the mask of a tile is a stretch of one table that has an entry a distance; groups of tiles
with equal masks, as other engines take them, are made when they are first asked for.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foveal.common.memo import remember
from foveal.patterns.base import Band, Pattern
from foveal.patterns.tiling import (
    MAX_TILE,
    Grid,
    Places,
    Scattered,
    TileGroup,
    Tiling,
)

_Starts = dict[tuple[int, ...], tuple[list[int], list[int]]]
"""Of tiles with equal masks: where the first query and the first key of each stand in the row."""

_WORTH_A_GRID = 4


@dataclass(frozen=True, eq=False)
class Rows:
    """Tiles of consecutive queries and consecutive keys, in the order of the row.

    queries, keys: (tiles,) where the first one stands in the row.
    num_queries, num_keys: (tiles,) how many there are.
    places: (tiles,) where the first query stands among the keys.
    whole: (tiles,) bool, whether every query reads every key.
    """

    queries: Tensor
    keys: Tensor
    num_queries: Tensor
    num_keys: Tensor
    places: Tensor
    whole: Tensor


class Banded(Tiling):
    """A plan of documents as `Rows`, with masks by distance."""

    rows: Rows
    distances: Distances

    def __init__(
        self,
        num_queries: int,
        num_keys: int,
        borders: tuple[tuple[int, int], ...],
        rows: Rows,
        distances: Distances,
    ) -> None:
        own = {"num_queries": num_queries, "num_keys": num_keys, "borders": borders}
        vars(self).update(own, rows=rows, distances=distances)  # groups come when asked for

    @functools.cached_property
    def groups(self) -> tuple[TileGroup, ...]:
        return tuple(_grouped(self.rows, self.distances))

    @property
    def visited(self) -> int:
        return int((self.rows.num_queries * self.rows.num_keys).sum())

    @functools.cached_property
    def covers_all(self) -> bool:
        return int(self.rows.num_queries.sum()) == self.num_queries

    @property
    def num_bytes(self) -> int:
        return 4096 * (1 + len(self.borders)) + 64 * len(self.rows.queries)

    def shift(self, queries: int, keys: int, num_queries: int, num_keys: int) -> Tiling:
        old = self.rows
        rows = Rows(
            old.queries + queries,
            old.keys + keys,
            old.num_queries,
            old.num_keys,
            old.places,
            old.whole,
        )
        borders = tuple((query + queries, key + keys) for query, key in self.borders)
        return Banded(num_queries, num_keys, borders, rows, self.distances)


def band_tiles(
    pattern: Pattern,
    documents: Sequence[tuple[int, int, int, int, int]],
    band: Band,
    num_queries: int,
    num_keys: int,
) -> Banded:
    """The plan of a row of documents, each (query, key, num_queries, num_keys, place).

    A tile holds at most 64 queries of one document, and the keys of it that the band leaves them.
    """
    borders = tuple([one[:2] for one in documents])
    longest = max((max(one[2:4]) + abs(one[4]) for one in documents), default=0)
    distances = distances_of(pattern, max(1024, 1 << longest.bit_length()))
    table = torch.tensor(documents, dtype=torch.int64, device="cpu").view(-1, 5)
    owner, first = _tiles_of(table[:, 2])
    query, key, queries, keys, place = table[owner].unbind(1)
    count = (queries - first).clamp_(max=MAX_TILE)
    at = place + first
    back, ahead = band
    low = torch.zeros_like(at) if back is None else (at - back).clamp_(min=0)
    high = keys if ahead is None else torch.minimum(keys, at + count + ahead)
    found = _where(high > low, query + first, key + low, count, high - low, at - low)
    allowed, pairs = distances.share(*found[2:])
    rows = Rows(*_where(allowed > 0, *found, allowed == pairs))
    return Banded(num_queries, num_keys, borders, rows, distances)


def _tiles_of(lengths: Tensor) -> tuple[Tensor, Tensor]:
    """(tiles,) the document of each tile, and where in it the tile begins; lengths are above 0."""
    tiles = (lengths + (MAX_TILE - 1)) // MAX_TILE
    ends = tiles.cumsum(0)
    count = int(ends[-1]) if len(ends) else 0
    owner = torch.zeros(count, dtype=torch.int64, device="cpu")
    owner[ends[:-1]] = 1
    owner = owner.cumsum(0)  # repeat_interleave wakes all threads, whatever the size
    return owner, (torch.arange(count, device="cpu") - (ends - tiles)[owner]) * MAX_TILE


def _where(mask: Tensor, *columns: Tensor) -> tuple[Tensor, ...]:
    """The rows for which the mask is True."""
    return columns if bool(mask.all()) else tuple([one[mask] for one in columns])


@dataclass(frozen=True, eq=False)
class Distances:
    """What a pattern says of every distance from -reach to reach; it depends on nothing else.

    allowed: (2 reach + 1,) bool, the largest distance first.
    counts: (2 reach + 2,) how many distances before each are allowed.
    """

    pattern: Pattern
    reach: int
    allowed: Tensor
    counts: Tensor

    def share(self, count: Tensor, num_keys: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """Of the distances between queries [at, at + count) and keys [0, num_keys), (tiles,) each:
        how many are allowed, and how many there are."""
        first = (self.reach + 1) - at - count
        last = (self.reach - at) + num_keys
        return self.counts[last] - self.counts[first], last - first

    def mask(self, count: int, at: int, num_keys: int) -> Tensor:
        """(1, count, num_keys) bool of the same."""
        rows = self.allowed[self.reach - (at + count - 1) : self.reach - at + num_keys]
        return rows.unfold(0, num_keys, 1).flip(0)[None]

    @functools.cached_property
    def words(self) -> Tensor:
        """(2 reach + 1,) int64: at each distance those of MAX_TILE consecutive queries, by bit.

        The mask of a tile with a bit a query, of which the first `count` matter, are num_keys of
        them from reach - at on.
        """
        found = torch.zeros(len(self.allowed), dtype=torch.int64, device="cpu")
        for query in range(MAX_TILE):
            found[query:] |= self.allowed[: len(found) - query].long() << query
        return found


@remember(entries=64, mebibytes=32)
def distances_of(pattern: Pattern, reach: int) -> Distances:
    distances = torch.arange(reach, -reach - 1, -1, device="cpu")
    allowed = pattern.allows(distances, torch.zeros_like(distances))
    counts = torch.nn.functional.pad(allowed.cumsum(0), (1, 0))
    return Distances(pattern, reach, allowed, counts)


# -- groups of tiles with equal masks ------------------------------------------------------------


@remember(entries=4096, mebibytes=32)
def _tile_mask(pattern: Pattern, reach: int, count: int, at: int, num_keys: int) -> Tensor:
    return distances_of(pattern, reach).mask(count, at, num_keys)


def _grouped(rows: Rows, distances: Distances) -> list[TileGroup]:
    masked, whole = _alike(rows)
    starts = [*masked.values(), *whole.values()]
    pattern, reach = distances.pattern, distances.reach
    masks: list[Tensor | None] = [_tile_mask(pattern, reach, *tile) for tile in masked]
    masks += [None] * len(whole)
    shapes = [(count, num_keys) for count, _, num_keys in masked]
    return [
        TileGroup(_places(queries, own[0], count), (_places(keys, own[1], num_keys),), mask)
        for (count, num_keys), own, (queries, keys), mask in zip(
            [*shapes, *whole], starts, _place(starts), masks, strict=True
        )
    ]


def _alike(rows: Rows) -> tuple[_Starts, _Starts]:
    """By (queries, place of the first, keys) tiles with a mask, and by (queries, keys) others."""
    found: _Starts = {}
    columns = (rows.queries, rows.keys, rows.num_queries, rows.places, rows.num_keys, rows.whole)
    for query, key, *shape in torch.stack([one.long() for one in columns], 1).tolist():
        starts = found.setdefault(tuple(shape), ([], []))
        starts[0].append(query)
        starts[1].append(key)
    masked: _Starts = {}
    whole: _Starts = {}
    for (count, at, num_keys, all_read), own in found.items():
        if not all_read:
            masked[count, at, num_keys] = own
            continue
        alike = whole.setdefault((count, num_keys), ([], []))
        alike[0].extend(own[0])
        alike[1].extend(own[1])
    return masked, whole


def _place(starts: list[tuple[list[int], list[int]]]) -> list[tuple[Tensor, ...]]:
    """All of them in one tensor, for many small ones take long to make."""
    flat = [start for both in starts for one in both for start in one]
    cuts = [len(one) for both in starts for one in both]
    parts = torch.tensor(flat, dtype=torch.int64, device="cpu").split(cuts)
    return list(zip(parts[::2], parts[1::2], strict=True))


def _places(starts: Tensor, values: list[int], count: int) -> Places:
    """Runs of `count` tokens; many that are evenly spaced as a grid, for that is read in place."""
    step = values[1] - values[0] if len(values) >= _WORTH_A_GRID else -1
    if step >= 0 and values == [values[0] + step * i for i in range(len(values))]:
        return Grid(values[0], ((len(values), step),), ((count, 1),))
    return Scattered(starts, ((count, 1),))
