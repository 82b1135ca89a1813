"""A tile plan as the kernel takes it: an array of `Group` of plan.h."""

from __future__ import annotations

import ctypes
import sys
from operator import attrgetter

import torch
from torch import Tensor

from foveal.common.memo import remember
from foveal.ops.bias import window_places
from foveal.ops.native.abi import Group, Places
from foveal.patterns import Halo, Pattern
from foveal.patterns.bands import Banded
from foveal.patterns.identity import Same
from foveal.patterns.offsets import Codes
from foveal.patterns.tabled import Tabled, codes_of
from foveal.patterns.tiling import (
    Grid,
    Lookup,
    Runs,
    Scattered,
    TileGroup,
    Tiling,
    offsets,
)

ITEM = 8
"""Bytes of an int64 and of a pointer."""
PADDING = 16
"""Numbers behind a table that a vector may touch."""
WORD = 64
"""Queries in a word of a mask, and most in a tile of the kernel."""
PIECE = 256
"""Keys of a row, at least, whose documents one thread takes: they and what is made of them stay
in its cache."""


class Plan:
    """A tile plan as an array of `Group`; holds the tensors that it points into.

    groups, order, pieces: addresses, for fields of `Call`.
    """

    def __init__(self, pattern: Pattern, n_keys: int, windowed: bool) -> None:
        tiling = pattern.tiles(n_keys)
        self.covers_all = tiling.covers_all
        self._held: list[object] = []
        if isinstance(tiling, Banded):
            self.groups, self.num_groups = self._by_tile(tiling)
            self.num_bytes = 256 * self.num_groups
        else:
            self.groups, self.num_groups = self._by_group(pattern, tiling, windowed)
            self.num_bytes = 4096 * self.num_groups  # Python's own
        self.order, self.pieces, self.num_pieces = 0, 0, 0
        if len(tiling.borders) > 1:
            order, pieces = _in_order(tiling)
            self.order, self.pieces = self._hold(order), self._hold(pieces)
            self.num_pieces = len(pieces) - 1
        self.codes = _codes(pattern, tiling) if isinstance(pattern, Tabled) else None

    def _by_group(self, pattern: Pattern, tiling: Tiling, windowed: bool) -> tuple[int, int]:
        groups = []
        for group in tiling.groups:
            window = None
            if windowed:
                assert isinstance(pattern, Halo)
                window = window_places(pattern, group)
            groups.append(self._group(group, window))
        array = (Group * len(groups))(*groups)
        self._held.append(array)
        return ctypes.addressof(array), len(groups)

    def _by_tile(self, tiling: Banded) -> tuple[int, int]:
        """Each tile by itself: that many groups are quicker made than few are found."""
        rows, distances = tiling.rows, tiling.distances
        count, reach = len(rows.queries), distances.reach
        each = ITEM * torch.arange(count, device="cpu")
        starts = self._hold(torch.stack([rows.queries, rows.keys]))
        items, words = self._hold(offsets(((reach, 1),))), self._hold(distances.words)
        keys = _table(Places, count, tiles=starts + ITEM * count + each, items=items)
        keys[:, -1] = rows.num_keys
        groups = _table(
            Group,
            count,
            num_tiles=1,
            tile_q=rows.num_queries,
            tile_k=rows.num_keys,
            queries=starts + each,
            keys=self._hold(keys) + each * (ctypes.sizeof(Places) // ITEM),
            num_parts=1,
            mask=(words + ITEM * (reach - rows.places)).masked_fill_(rows.whole, 0),
        )
        first = Group.queries.offset // ITEM
        groups[:, first + 1], groups[:, first + 3] = items, rows.num_queries
        return self._hold(groups), count

    def _group(self, group: TileGroup, window: tuple[Tensor, Tensor] | None) -> Group:
        keys = (Places * len(group.keys))(*(self._places(part) for part in group.keys))
        self._held.append(keys)
        mask = None if group.mask is None else mask_words(group.mask)
        rows, columns = (None, None) if window is None else window
        return Group(
            group.num_tiles,
            group.tile_q,
            group.tile_k,
            self._places(group.queries),
            keys,
            len(keys),
            self._hold(mask),
            0 if mask is None or len(mask) == 1 else mask[0].numel(),
            self._hold(rows),
            self._hold(columns),
        )

    def _places(self, places: Grid | Lookup | Runs | Scattered) -> Places:
        if isinstance(places, Runs):
            places = places.shift(0)
        if isinstance(places, Lookup):
            tiles = torch.zeros(places.num_tiles, dtype=torch.long, device="cpu")
            count = places.num_items
            return Places(self._hold(tiles), self._hold(places.positions), count, count)
        if isinstance(places, Scattered):
            items = offsets(places.items)
            return Places(self._hold(places.starts), self._hold(items), 0, len(items))
        tiles, items = places.starts(), offsets(places.items)
        return Places(self._hold(tiles), self._hold(items), 0, places.num_items)

    def _hold(self, x: Tensor | None) -> int:
        """The address of int64s that live as long as the plan; 0 for none."""
        if x is None:
            return 0
        if x.dtype != torch.int64 or not x.is_contiguous():
            x = x.to("cpu", torch.int64).contiguous()
        self._held.append(x)
        return x.data_ptr()


def _first(places: Grid | Lookup | Runs | Scattered) -> Tensor:
    """(tiles,) first position of each."""
    if isinstance(places, Scattered):
        return places.starts
    return places.starts() if isinstance(places, Grid) else places.index()[:, 0]


def _table(structure: type[ctypes.Structure], count: int, **columns: Tensor | int) -> Tensor:
    """An array of `count` structures of int64s: what each column begins with, and zeros."""
    found = torch.zeros(count, ctypes.sizeof(structure) // ITEM, dtype=torch.int64, device="cpu")
    for name, column in columns.items():
        found[:, getattr(structure, name).offset // ITEM] = column
    return found


def _in_order(tiling: Tiling) -> tuple[Tensor, Tensor]:
    """Tiles as their queries stand in the row, and pieces of them that are whole documents.

    (tiles, 2) group and tile; (pieces + 1, 2) first tile and first key of each, and the ends.
    """
    if isinstance(tiling, Banded):
        first = tiling.rows.queries
        group = torch.arange(len(first), device="cpu")
        order = torch.stack([group, torch.zeros_like(group)], 1)
    else:
        firsts = [_first(group.queries) for group in tiling.groups]
        counts = torch.tensor([len(one) for one in firsts], device="cpu")
        group = torch.arange(len(counts), device="cpu").repeat_interleave(counts)
        tile = torch.arange(len(group), device="cpu") - (counts.cumsum(0) - counts)[group]
        first, places = torch.cat(firsts).sort()
        order = torch.stack([group, tile], 1)[places]
    pieces = [(0, 0)]
    for query, key in tiling.borders:
        if key - pieces[-1][1] >= PIECE:
            pieces.append((query, key))
    cuts = torch.tensor([*pieces, (tiling.num_queries, tiling.num_keys)], device="cpu")
    cuts[:, 0] = torch.searchsorted(first, cuts[:, 0].contiguous())
    return order, cuts


def _codes(pattern: Tabled, tiling: Tiling) -> Codes:
    """Codes whose differences run from 0 over no more than the pairs that stand in tiles.

    Behind the last one stand as many rows as a vector may touch.
    """
    query, key, rows = codes_of(pattern, tiling.num_queries, tiling.num_keys)
    ends = []
    for group in tiling.groups:
        q, k = query[group.queries.index()].aminmax(dim=1), key[group.key_index()].aminmax(dim=1)
        ends += [int((q.min - k.max).min()), int((q.max - k.min).max())]
    first, last = (min(ends), max(ends)) if ends else (0, 0)
    rows = torch.nn.functional.pad(rows[first : last + 1], (0, PADDING))
    return Codes(query - first, key.contiguous(), rows)


@remember(entries=4096, mebibytes=32, key=Same)
def mask_words(mask: Tensor) -> Tensor:
    """(tiles, tile_q, tile_k) bool -> a bit a query: (tiles, ceil(tile_q / 64), tile_k) int64."""
    padded = torch.nn.functional.pad(mask, (0, 0, 0, -mask.shape[1] % WORD))
    bits = padded.view(torch.uint8).unflatten(1, (-1, 8, 8))
    octets = bits[:, :, :, 0].clone()
    for place in range(1, 8):
        octets += bits[:, :, :, place] << place
    # the kernel reads them as words of the machine, the first query in the lowest bit
    octets = octets if sys.byteorder == "little" else octets.flip(2)
    return octets.mT.clone(memory_format=torch.contiguous_format).view(torch.int64)[..., 0]


def plan(pattern: Pattern, n_keys: int, windowed: bool) -> Plan:
    """The pattern's plan for the kernel; with the places of a WindowBias if `windowed`."""
    return (_fresh if pattern.keeps_apart else _kept)(pattern, n_keys, windowed)


_kept = remember(entries=256)(Plan)
# as in Pattern.tiles; the masks lie there
_fresh = remember(entries=16, mebibytes=16, size=attrgetter("num_bytes"))(Plan)
