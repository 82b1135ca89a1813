"""The tile plan of a layout of blocks.

A tile is some neighbouring rows of blocks; it reads the blocks that any of them reads, run by run.
Whole tiles are built at once: a layout may be new at every step of a training.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from foveal.patterns.tiling import (
    MAX_TILE,
    Allows,
    Lookup,
    Places,
    Runs,
    TileGroup,
    listed_groups,
)

TILE_OVERHEAD = 32
"""What fetching a key for a tile costs, in scores: decides whether rows of blocks share a tile."""

ROUND_TO = 16
"""Keys of a tile are a multiple of this, so that few shapes arise."""


def block_groups(
    read: Tensor, block_size: int, length: int, causal: bool, allows: Allows
) -> list[TileGroup]:
    """The tiles of a layout.

    Args:
        read: (num_blocks, num_blocks) bool; rows are blocks of queries.
        block_size: tokens in a block.
        length: tokens of the sequence, which may end inside a block.
        causal: a query reads no later key.
        allows: the same, token by token.
    """
    pieces = -(-block_size // MAX_TILE)
    if block_size % pieces:
        return _listed(read, block_size, length, causal, allows)
    count, size = -(-length // block_size), block_size // pieces
    read = read[:count, :count]
    if pieces > 1:  # a row of large blocks is cut into tiles
        read = read.repeat_interleave(pieces, 0).repeat_interleave(pieces, 1)
        count = -(-length // size)
        read = read[:count, :count]
        read = read.tril() if causal else read
    tiles: dict[int, list[int]] = {}
    for first, last in _merged_rows(read, size):
        tiles.setdefault(last - first, []).append(first)
    groups: list[TileGroup] = []
    for rows, starts in tiles.items():
        groups += _equal_tiles(
            read, torch.tensor(starts, device="cpu"), rows, size, length, causal
        )
    return groups


def _merged_rows(read: Tensor, size: int) -> Iterator[tuple[int, int]]:
    """(first row, last + 1): rows share a tile while that fetches fewer keys in sum."""
    most, count = MAX_TILE // size, len(read)
    read = read.contiguous()  # by a name that outlives the pointer into it
    content = ctypes.string_at(read.data_ptr(), read.numel())
    # a row as one number, a byte for each column: unions and counts then are single steps
    rows = [int.from_bytes(content[i * count : (i + 1) * count], "little") for i in range(count)]
    first = 0
    while first < count:
        union, last = rows[first], first + 1
        cost = union.bit_count() * (size + TILE_OVERHEAD)
        while last < count and last - first < most:
            both = union | rows[last]
            together = both.bit_count() * ((last + 1 - first) * size + TILE_OVERHEAD)
            if together > cost + rows[last].bit_count() * (size + TILE_OVERHEAD):
                break
            union, last, cost = both, last + 1, together
        yield first, last
        first = last


def _equal_tiles(
    read: Tensor, first: Tensor, rows: int, size: int, length: int, causal: bool
) -> Iterator[TileGroup]:
    """Tiles of as many rows each, in groups of as many blocks of keys.

    first: (tiles,) their first rows.
    """
    blocks = read[first[:, None] + torch.arange(rows, device="cpu")]  # (tiles, rows, columns)
    count = blocks.any(1).sum(1)
    width = _rounded(count * size) // size if ROUND_TO % size == 0 else count
    width = width.clamp(max=read.shape[1])
    ragged = (first + rows) * size > length  # the last tile of a sequence may be shorter
    # tiles of one shape side by side, so that a group is a slice
    shapes, order = (width * 2 + ragged).sort(stable=True)
    blocks, count, start = blocks[order], count[order, None], first[order] * size
    units = blocks.any(1).to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    known = torch.arange(read.shape[1], device="cpu") < count
    units = torch.where(known, units, units[:, :1])
    mask = blocks.gather(2, units[:, None].expand(-1, rows, -1)) & known[:, None]
    on, begin = mask.sum((1, 2)).tolist(), 0
    for shape, tiles in itertools.groupby(shapes.tolist()):
        end = begin + len(list(tiles))
        here, begin = slice(begin, end), end
        cut = shape // 2
        if not cut:
            continue
        own = start[here]
        num_queries = min(rows * size, length - int(own[0])) if shape % 2 else rows * size
        whole = all(number == rows * cut for number in on[here])
        masked = None if whole else mask[here, :, :cut]
        yield _group(
            own, units[here, :cut].contiguous(), masked, num_queries, size, length, causal
        )


def _rounded(keys: Tensor) -> Tensor:
    """Numbers of keys, rounded up to ROUND_TO, or below it to a power of two."""
    step = torch.full_like(keys, ROUND_TO)
    for power in (8, 4, 2, 1):
        step = torch.where(keys <= power, power, step)
    return -(-keys // step) * step


def _group(
    start: Tensor,
    units: Tensor,
    mask: Tensor | None,
    num_queries: int,
    size: int,
    length: int,
    causal: bool,
) -> TileGroup:
    """Tiles of `num_queries` queries from `start` (tiles,).

    units: (tiles, width) blocks of keys that they read.
    mask: (tiles, rows, width) bool, or None where all are read.
    """
    queries = start[:, None] + torch.arange(num_queries, device="cpu")
    places: Places = Runs(units, size)
    pairs = None
    if mask is not None:
        pairs = mask.repeat_interleave(size, 1)[:, :num_queries].repeat_interleave(size, 2)
    if length % size or causal:
        keys = (units[:, :, None] * size + torch.arange(size, device="cpu")).flatten(1)
        allowed = keys[:, None] <= (queries[:, :, None] if causal else length - 1)
        pairs = allowed if pairs is None else pairs & allowed
        if length % size:
            places = Lookup(keys.clamp(max=length - 1))
        if bool(pairs.all()):
            pairs = None
    if pairs is not None:
        pairs = pairs.expand(-1, num_queries, -1)
    return TileGroup(Lookup(queries), (places,), pairs)


def _listed(read: Tensor, size: int, length: int, causal: bool, allows: Allows) -> list[TileGroup]:
    """For blocks that no tile divides: keys one by one."""
    piece = -(-size // -(-size // MAX_TILE))
    tiles = [
        torch.arange(first, min(first + piece, start + size, length), device="cpu")
        for start in range(0, length, size)
        for first in range(start, min(start + size, length), piece)
    ]

    def keys(queries: Tensor) -> Tensor:
        columns = read[int(queries[0]) // size].nonzero()
        found = (columns * size + torch.arange(size, device="cpu")).reshape(-1)
        return found[found < (int(queries[-1]) + 1 if causal else length)]

    return listed_groups(allows, tiles, keys)
