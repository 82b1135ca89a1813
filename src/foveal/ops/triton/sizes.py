"""Tile sizes of the Triton kernels: a plain function of the call, the same on every machine.

Triton's own tuner needs a GPU and picks by time alone, without looking at the result.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from foveal.patterns import Halo

LEAST = 16
"""The shortest side of a matrix that the tensor cores take."""

WIDEST = 128
ROW_BYTES = 16 << 10
"""A step holds whole rows of a window. With this limit, keys, values and the second stage of
either stay below 99 KiB, the shared memory of a program on the smallest GPUs in use."""


class Tile(NamedTuple):
    """What one step of a program holds, and the warps that share it."""

    queries: int
    keys: int
    num_warps: int


class Tiles(NamedTuple):
    """The tile of each kernel."""

    forward: Tile
    query_gradient: Tile
    key_gradient: Tile


# By features, rounded up to a power of two: the largest tiles that stay in the 255 registers of a
# thread on sm_90 (float32 of 128 features and more spills a little). Up to 32 features never use
# more than two warps: four share their products on Hopper, which has miscompiled short sides.
HALF = {
    16: Tiles(Tile(64, 64, 2), Tile(64, 32, 2), Tile(64, 32, 2)),
    32: Tiles(Tile(64, 32, 2), Tile(64, 32, 2), Tile(32, 32, 2)),
    64: Tiles(Tile(64, 64, 4), Tile(64, 64, 4), Tile(64, 64, 4)),
    128: Tiles(Tile(64, 64, 4), Tile(64, 32, 4), Tile(64, 32, 8)),
    256: Tiles(Tile(32, 32, 4), Tile(32, 32, 8), Tile(32, 32, 8)),
}
FLOAT32 = {
    16: Tiles(Tile(32, 32, 2), Tile(32, 32, 2), Tile(32, 16, 2)),
    32: Tiles(Tile(32, 16, 2), Tile(32, 16, 2), Tile(32, 16, 2)),
    64: Tiles(Tile(64, 32, 4), Tile(32, 16, 4), Tile(32, 16, 4)),
    128: Tiles(Tile(16, 16, 4), Tile(16, 16, 4), Tile(16, 16, 4)),
    256: Tiles(Tile(16, 16, 8), Tile(16, 16, 8), Tile(16, 16, 8)),
}


def power_of_two(n: int) -> int:
    """The next power of two, at least 1."""
    return 1 << max(0, n - 1).bit_length()


def padded(dim: int) -> int:
    """Features of a head as tensor cores take them."""
    return max(LEAST, power_of_two(dim))


def tiles(dim: int, dtype: torch.dtype) -> Tiles:
    """The tiles for heads of `dim` features, of keys or values, whichever are more."""
    return (FLOAT32 if dtype == torch.float32 else HALF)[padded(dim)]


def widest_window(dim: int, dtype: torch.dtype) -> int:
    """The widest window whose rows fit in a step."""
    return min(WIDEST, ROW_BYTES // (padded(dim) * dtype.itemsize))


def query_sides(pattern: Halo, tile: Tile) -> dict[str, int]:
    """Sides of a tile of queries and of a step through their window (see kernels.py)."""
    height, width = (side // pattern.query_stride for side in pattern.block)
    columns = power_of_two(pattern.window[1])
    rows = min(max(1, tile.keys // columns), power_of_two(pattern.window[0]))
    return {
        "M": _query_side(height * width, tile),
        "R": max(rows, LEAST // columns),
        "C": columns,
    }


def key_sides(pattern: Halo, tile: Tile) -> dict[str, int]:
    """Sides of a tile of keys and of a step through the queries that read them."""
    height, width = (side // pattern.query_stride for side in pattern.block)
    tall, wide = {64: (8, 8), 32: (4, 8), 16: (4, 4)}[tile.keys]
    return {"M": _query_side(height * width, tile), "H": tall, "W": wide}


def _query_side(count: int, tile: Tile) -> int:
    return min(tile.queries, max(LEAST, power_of_two(count)))
