"""Plans of rows whose documents do not look at each other, put together from cached parts.

Packs differ in every batch, but the tiles that they are made of do not: under a pattern that does
not change when it is shifted, the mask of a tile depends on a few numbers only, and tiles of equal
masks are one group wherever they stand. No tile holds keys of two documents.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch

from foveal.common.memo import remember
from foveal.patterns.bands import band_tiles
from foveal.patterns.base import Pattern
from foveal.patterns.tiling import (
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
        plan: Tiling = band_tiles(pattern, documents, band, count, num_keys)
    else:
        if restarts or pattern.period == 1:
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
