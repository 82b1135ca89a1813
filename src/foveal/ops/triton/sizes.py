"""Tile sizes of the Triton kernels: a plain function of the call, the same on every machine.

Triton's own tuner needs a GPU and picks by time alone, without looking at the result.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from foveal.patterns import Halo

SHARED_BYTES = 96 << 10
"""What the tokens of one step may fill; the smallest GPUs in use have 99 KiB for a program."""

LEAST = 16
"""The shortest side of a matrix that the tensor cores take."""

MAX_WINDOW_WIDTH = 128
"""A step holds whole rows of a window."""


class Sizes(NamedTuple):
    """Sides of tiles (see kernels.py) and how a program runs."""

    queries: int  # M
    rows: int  # R
    columns: int  # C
    key_tile: tuple[int, int]  # (H, W)
    dim: int  # D
    dim_v: int  # E
    num_warps: int
    num_stages: int


def power_of_two(n: int) -> int:
    """The next power of two, at least 1."""
    return 1 << max(0, n - 1).bit_length()


def sizes(pattern: Halo, dim: int, dim_v: int, dtype: torch.dtype) -> Sizes:
    """Tile sizes for one pattern, head size and precision."""
    height, width = (side // pattern.query_stride for side in pattern.block)
    dim, dim_v = (max(LEAST, power_of_two(d)) for d in (dim, dim_v))
    token = (dim + dim_v) * dtype.itemsize
    # two sides of 64 tokens and a second stage of one of them, if they fit
    side = 64
    while side > LEAST and 3 * side * token > SHARED_BYTES:
        side //= 2
    queries = min(side, max(LEAST, power_of_two(height * width)))
    columns = power_of_two(pattern.window[1])
    rows = min(max(1, side // columns), power_of_two(pattern.window[0]))
    rows = max(rows, -(-LEAST // columns))
    key_tile = (side // 8, 8) if side >= 32 else (4, 4)
    # four warps share one product on Hopper, which Triton gets wrong for short sides
    num_warps = 4 if min(dim, dim_v, queries, rows * columns) >= 64 else 2
    return Sizes(queries, rows, columns, key_tile, dim, dim_v, num_warps, num_stages=2)
