"""Plans of rows whose documents do not look at each other, put together from cached parts.

Packs differ in every batch, but the tiles that they are made of do not: under a pattern that does
not change when it is shifted, the mask of a tile depends on a few numbers only, and tiles of equal
masks are one group wherever they stand. No tile holds keys of two documents.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from foveal.common.memo import remember
from foveal.patterns.base import Band, Pattern
from foveal.patterns.tiling import (
    MAX_TILE,
    Grid,
    Lookup,
    Places,
    Runs,
    Scattered,
    TileGroup,
    Tiling,
    consecutive,
    listed_groups,
)

_Starts = dict[tuple[int, int, int], tuple[list[int], list[int]]]
"""Of tiles with equal masks: (queries, place of the first among the keys, keys) -> where the first
query and the first key of each stand in the row."""

_WORTH_A_GRID = 4


class Document(NamedTuple):
    """Queries and keys of a row that read each other only.

    query, key: positions of the first query and the first key in the row.
    place: position of the first query among the keys of the document, as the pattern counts.
    """

    query: int
    key: int
    num_queries: int
    num_keys: int
    place: int = 0

    @property
    def extent(self) -> int:
        """More than any distance between a query and a key."""
        return max(self.num_queries, self.num_keys, 1) + abs(self.place)


def pack_tiles(
    pattern: Pattern,
    documents: Sequence[Document],
    queries: tuple[int, int],
    num_keys: int,
    restarts: bool,
) -> Tiling:
    """The plan of a row of documents.

    Args:
        pattern: who reads whom within a document.
        documents: in their order in the row.
        queries: the first one, and how many; the plan numbers them from 0.
        num_keys: of the row.
        restarts: whether the pattern counts from 0 in each document; else as in the row.
    """
    first, count = queries
    documents = [one for one in clipped(documents, first, count) if one.num_queries]
    documents = [one for one in documents if one.num_keys]
    band = pattern.band() if pattern.period == 1 else None
    if band is not None:
        groups = _banded(pattern, documents, band)
    elif restarts or pattern.period == 1:
        groups = _by_length(pattern, documents)
    else:
        groups = [group for one in documents for group in _listed(pattern, one)]
    borders = tuple((one.query, one.key) for one in documents)
    plan = Tiling(count, num_keys, tuple(groups), borders)
    return plan.shift(-first, 0, count, num_keys) if first else plan


def clipped(
    documents: Sequence[Document], first: int, count: int, skipped: int = 0
) -> list[Document]:
    """What is left of `count` queries from `first` on, and of the keys from `skipped` on."""
    found = []
    for query, key, num_queries, num_keys, place in documents:
        start = min(max(query, first), query + num_queries)
        stop = max(start, min(query + num_queries, first + count))
        begin = min(max(key, skipped), key + num_keys)
        left = key + num_keys - begin
        found.append(Document(start, begin, stop - start, left, place + start - query))
    return found


def pairs_within(pattern: Pattern, documents: Sequence[Document]) -> int:
    """Pairs of a row of whole documents under a pattern that counts from 0 in each."""
    counts = Counter(one.num_keys for one in documents)
    return sum(count * pattern.num_pairs(length) for length, count in counts.items())


# -- by tiles: the mask depends on the distance, and keys lie side by side ----------------------


def _banded(pattern: Pattern, documents: Sequence[Document], band: Band) -> list[TileGroup]:
    found: _Starts = {}
    back, ahead = band
    for query, key, num_queries, num_keys, place in documents:
        for first in range(0, num_queries, MAX_TILE):
            count = min(MAX_TILE, num_queries - first)
            at = place + first
            low = 0 if back is None else max(0, at - back)
            high = num_keys if ahead is None else min(num_keys, at + count + ahead)
            if low < high:
                starts = found.setdefault((count, at - low, high - low), ([], []))
                starts[0].append(query + first)
                starts[1].append(key + low)
    return _grouped(pattern, found, max((one.extent for one in documents), default=0))


def _grouped(pattern: Pattern, found: _Starts, extent: int) -> list[TileGroup]:
    reach = max(1024, 1 << extent.bit_length())
    distances = _distances(pattern, reach)
    shapes, masks, starts = [], [], []
    whole: dict[tuple[int, int], tuple[list[int], list[int]]] = {}
    for (count, at, num_keys), own in found.items():
        allowed, pairs = distances.share(count, at, num_keys)
        if allowed == pairs:  # such tiles are alike wherever they stand
            alike = whole.setdefault((count, num_keys), ([], []))
            alike[0].extend(own[0])
            alike[1].extend(own[1])
        elif allowed:
            shapes.append((count, num_keys))
            masks.append(_tile_mask(pattern, reach, count, at, num_keys))
            starts.append(own)
    shapes, starts = [*shapes, *whole], [*starts, *whole.values()]
    placed = _place(starts)
    return [
        TileGroup(
            _places(queries, own[0], count),
            (_places(keys, own[1], num_keys),),
            *(masks[number] if number < len(masks) else ()),
        )
        for number, ((count, num_keys), own, (queries, keys)) in enumerate(
            zip(shapes, starts, placed, strict=True)
        )
    ]


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


@dataclass(frozen=True, eq=False)
class _Distances:
    """What a pattern says of every distance from -reach to reach.

    allowed: (2 reach + 1,) bool, the largest distance first.
    counts: how many distances before each are allowed.
    """

    allowed: Tensor
    counts: list[int]
    reach: int

    def share(self, count: int, at: int, num_keys: int) -> tuple[int, int]:
        """Distances between queries [at, at + count) and keys [0, num_keys): allowed, and all."""
        first = self.reach - (at + count - 1)
        last = self.reach - (at - num_keys + 1) + 1
        return self.counts[last] - self.counts[first], last - first

    def mask(self, count: int, at: int, num_keys: int) -> Tensor:
        """(1, count, num_keys) bool of the same."""
        rows = self.allowed[self.reach - (at + count - 1) : self.reach - at + num_keys]
        return rows.unfold(0, num_keys, 1).flip(0)[None]

    @functools.cached_property
    def words(self) -> Tensor:
        """(2 reach + 1,) int64: at each distance those of MAX_TILE consecutive queries, by bit."""
        found = torch.zeros(len(self.allowed), dtype=torch.int64, device="cpu")
        for query in range(MAX_TILE):
            found[query:] |= self.allowed[: len(found) - query].long() << query
        return found

    def mask_words(self, count: int, at: int, num_keys: int) -> Tensor:
        """The mask with a bit a query: (1, 1, num_keys) int64."""
        own = self.words[self.reach - at : self.reach - at + num_keys]
        return (own if count == MAX_TILE else own & ((1 << count) - 1))[None, None]


@remember(entries=64, mebibytes=32)
def _distances(pattern: Pattern, reach: int) -> _Distances:
    distances = torch.arange(reach, -reach - 1, -1, device="cpu")
    allowed = pattern.allows(distances, torch.zeros_like(distances))
    return _Distances(allowed, [0, *allowed.cumsum(0).tolist()], reach)


@remember(entries=4096, mebibytes=32)
def _tile_mask(
    pattern: Pattern, reach: int, count: int, at: int, num_keys: int
) -> tuple[Tensor, Tensor]:
    distances, tile = _distances(pattern, reach), (count, at, num_keys)
    return distances.mask(*tile), distances.mask_words(*tile)


# -- by documents: those of one length have one plan ---------------------------------------------


def _by_length(pattern: Pattern, documents: Sequence[Document]) -> list[TileGroup]:
    alike: dict[tuple[int, int, int], list[Document]] = {}
    for one in documents:
        alike.setdefault(one[2:], []).append(one)
    groups = []
    for (num_queries, num_keys, place), ones in alike.items():
        part = _part(pattern, num_queries, num_keys, place)
        queries, keys = ([one[side] for one in ones] for side in (0, 1))
        groups += [_copies(group, queries, keys) for group in part]
    return groups


def _part(
    pattern: Pattern, num_queries: int, num_keys: int, place: int
) -> tuple[TileGroup, ...] | list[TileGroup]:
    if place == 0 and num_queries == pattern.num_queries(num_keys):
        return pattern.tiles(num_keys).groups
    return _later_queries(pattern, num_queries, num_keys, place)


@remember(entries=256)
def _later_queries(
    pattern: Pattern, num_queries: int, num_keys: int, place: int
) -> list[TileGroup]:
    """The queries from `place` on, counted from 0."""
    if place >= 0:
        return list(pattern._part(place, num_queries, num_keys).groups)
    groups = _listed(pattern, Document(place, 0, num_queries, num_keys))
    return [TileGroup(one.queries.shift(-place), one.keys, one.mask) for one in groups]


def _copies(group: TileGroup, queries: list[int], keys: list[int]) -> TileGroup:
    """The tiles of a group as many times as there are offsets of queries, and of keys."""
    mask = group.mask
    if mask is not None and len(mask) > 1:
        mask = mask.repeat(len(queries), 1, 1)
    places = tuple(_spread(part, keys) for part in group.keys)
    return TileGroup(_spread(group.queries, queries), places, mask)


def _spread(places: Places, by: list[int]) -> Places:
    if len(by) == 1:
        return places.shift(by[0])
    if isinstance(places, Lookup | Runs):
        return Lookup(torch.cat([places.index() + offset for offset in by]))
    starts = places.starts() if isinstance(places, Grid) else places.starts
    shifted = torch.tensor(by, device="cpu")[:, None] + starts
    return Scattered(shifted.flatten(), places.items)


# -- one by one ----------------------------------------------------------------------------------


def _listed(pattern: Pattern, one: Document) -> list[TileGroup]:
    """A document where it stands in the row, as the pattern counts."""
    stop = one.key + one.num_keys
    return listed_groups(
        pattern.allows,
        consecutive(one.query + one.num_queries, one.query),
        lambda queries: pattern._candidates(queries, stop, first=one.key),
    )
