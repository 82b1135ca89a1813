"""The C structures of plan.h, and a tile plan in their form."""

from __future__ import annotations

import ctypes
import sys
from ctypes import POINTER, Structure, c_double, c_int64, c_uint64, c_void_p

import torch
from torch import Tensor

from foveal.common.memo import remember
from foveal.ops.bias import window_places
from foveal.patterns import Halo, Pattern
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

PADDING = 16
"""Numbers behind a table that a vector may touch."""
WORD = 64
"""Queries in a word of a mask, and most in a tile of the kernel."""
PIECE = 256
"""Keys of a row, at least, whose documents one thread takes: they and what is made of them stay
in its cache."""


class Places(Structure):
    _fields_ = [
        ("tiles", c_void_p),
        ("items", c_void_p),
        ("item_step", c_int64),
        ("count", c_int64),
    ]


class Selection(Structure):
    _fields_ = [
        ("blocks", c_void_p),
        *((name, c_int64) for name in ("count", "unit", "size", "causal", "first", "per_token")),
    ]


class Group(Structure):
    _fields_ = [
        ("num_tiles", c_int64),
        ("tile_q", c_int64),
        ("tile_k", c_int64),
        ("queries", Places),
        ("keys", POINTER(Places)),
        ("num_parts", c_int64),
        ("mask", c_void_p),
        ("mask_step", c_int64),
        ("window_rows", c_void_p),
        ("window_columns", c_void_p),
        ("selection", Selection),
    ]


class Matrix(Structure):
    _fields_ = [("data", c_void_p), ("batch", c_int64), ("head", c_int64), ("token", c_int64)]


class Bias(Structure):
    _fields_ = [
        ("data", c_void_p),
        ("batch", c_int64),
        ("head", c_int64),
        ("query", c_int64),
        ("key", c_int64),
    ]


class Table(Structure):
    _fields_ = [
        ("data", c_void_p),
        ("head", c_int64),
        ("query", c_void_p),
        ("key", c_void_p),
        ("size", c_int64),
    ]


class Call(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("batch", "kv_heads", "repeats", "num_queries")),
        *((name, c_int64) for name in ("num_keys", "head_dim", "value_dim")),
        ("groups", POINTER(Group)),
        *((name, c_int64) for name in ("num_groups", "threads", "is_bfloat16")),
        *((name, Matrix) for name in ("q", "k", "v", "out")),
        ("lse", c_void_p),
        ("rows", Matrix),
        ("columns", Matrix),
        ("window_height", c_int64),
        ("window_width", c_int64),
        ("bias", Bias),
        ("key_mask", c_void_p),
        ("scale", c_double),
        ("dropout_p", c_double),
        ("seed", c_uint64),
        ("softcap", c_double),
        ("sinks", c_void_p),
        ("d_out", Matrix),
        ("d_lse", c_void_p),
        *((name, Matrix) for name in ("d_q", "d_k", "d_v", "d_rows", "d_columns")),
        ("d_bias", c_void_p),
        ("bias_copies", c_int64),
        ("bias_size", c_int64),
        ("delta", c_void_p),
        ("lse_batch", c_int64),
        ("lse_head", c_int64),
        ("table", Table),
        ("d_table", c_void_p),
        *((name, c_void_p) for name in ("order", "pieces")),
        ("num_pieces", c_int64),
    ]


class Affine(Structure):
    _fields_ = [("weight", c_void_p), ("bias", c_void_p), ("eps", c_double)]


class Layer(Structure):
    _fields_ = [
        *((name, Affine) for name in ("attn_norm", "to_qkv", "to_out")),
        *((name, Affine) for name in ("ff_norm", "to_hidden", "ff_out")),
        ("keys", c_void_p),
        ("values", c_void_p),
        *((name, c_int64) for name in ("head_step", "place", "held")),
    ]


class Stack(Structure):
    _fields_ = [
        ("layers", POINTER(Layer)),
        *((name, c_int64) for name in ("num_layers", "dim", "heads", "kv_heads")),
        *((name, c_int64) for name in ("head_dim", "hidden")),
        ("angles", c_void_p),
        ("x", c_void_p),
    ]


def matrix(x: Tensor | None) -> Matrix:
    """(batch, heads, tokens, features) with unit stride in the features."""
    if x is None:
        return Matrix()
    return Matrix(x.data_ptr(), *x.stride()[:3])


def broadcast(x: Tensor | None) -> Bias:
    """(batch or 1, heads or 1, queries or 1, keys or 1)"""
    if x is None:
        return Bias()
    steps = (stride if size > 1 else 0 for size, stride in zip(x.shape, x.stride(), strict=True))
    return Bias(x.data_ptr(), *steps)


class Plan:
    """A tile plan as an array of `Group`; holds the tensors that it points into."""

    def __init__(self, pattern: Pattern, n_keys: int, windowed: bool) -> None:
        tiling = pattern.tiles(n_keys)
        self.covers_all = tiling.covers_all
        self._held: list[object] = []
        groups = []
        for group in tiling.groups:
            window = None
            if windowed:
                assert isinstance(pattern, Halo)
                window = window_places(pattern, group)
            groups.append(self._group(group, window))
        self.groups = (Group * len(groups))(*groups)
        self.order, self.pieces, self.num_pieces = None, None, 0
        if len(tiling.borders) > 1:
            order, pieces = _in_order(tiling)
            self.order, self.pieces = self._hold(order), self._hold(pieces)
            self.num_pieces = len(pieces) - 1
        self.codes = _codes(pattern, tiling) if isinstance(pattern, Tabled) else None

    def _group(self, group: TileGroup, window: tuple[Tensor, Tensor] | None) -> Group:
        keys = (Places * len(group.keys))(*(self._places(part) for part in group.keys))
        self._held.append(keys)
        mask = group.words
        if mask is None and group.mask is not None:
            mask = mask_words(group.mask)
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

    def _hold(self, x: Tensor | None) -> int | None:
        if x is None:
            return None
        if x.dtype != torch.int64 or not x.is_contiguous():
            x = x.to("cpu", torch.int64).contiguous()
        self._held.append(x)
        return x.data_ptr()


def _first(places: Grid | Lookup | Runs | Scattered) -> Tensor:
    """(tiles,) first position of each."""
    if isinstance(places, Scattered):
        return places.starts
    return places.starts() if isinstance(places, Grid) else places.index()[:, 0]


def _in_order(tiling: Tiling) -> tuple[Tensor, Tensor]:
    """Tiles as their queries stand in the row, and pieces of them that are whole documents.

    (tiles, 2) group and tile; (pieces + 1, 2) first tile and first key of each, and the ends.
    """
    firsts = [_first(group.queries) for group in tiling.groups]
    counts = torch.tensor([len(one) for one in firsts], device="cpu")
    group = torch.arange(len(counts), device="cpu").repeat_interleave(counts)
    tile = torch.arange(len(group), device="cpu") - (counts.cumsum(0) - counts)[group]
    first, order = torch.cat(firsts).sort()
    pieces = [(0, 0)]
    for query, key in tiling.borders:
        if key - pieces[-1][1] >= PIECE:
            pieces.append((query, key))
    cuts = torch.tensor(pieces, device="cpu")
    cuts[:, 0] = torch.searchsorted(first, cuts[:, 0].contiguous())
    end = torch.tensor([[len(order), tiling.num_keys]], device="cpu")
    return torch.stack([group, tile], 1)[order], torch.cat([cuts, end])


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
_fresh = remember(entries=16, mebibytes=16, size=lambda one: 4096 * len(one.groups))(Plan)


def declare(library: ctypes.CDLL) -> None:
    """Tell ctypes the signatures of plan.h."""
    structures = {"foveal_forward": Call, "foveal_backward": Call, "foveal_step": Stack}
    for name, structure in structures.items():
        function = getattr(library, name)
        function.argtypes, function.restype = [POINTER(structure)], ctypes.c_int
