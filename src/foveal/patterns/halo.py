"""Blocked local attention with a halo (HaloNet)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveal.patterns.base import Overlap
from foveal.patterns.image import ImagePattern, tile_shape
from foveal.patterns.sizes import pair
from foveal.patterns.tiling import Axis, Tiling, axes_groups

WHOLE_BLOCK = 256
"""A block of up to this many queries is one tile: its queries share their keys, so no mask."""


@dataclass(frozen=True)
class Halo(ImagePattern):
    """All pixels of a block read the block and a border of `halo_size` pixels around it.

    Pixels beyond the image do not exist. Vaswani et al., "Scaling Local Self-Attention for
    Parameter Efficient Visual Backbones" (2021), section 2.2.

    Args:
        size: (height, width) of the image, or an int; need not be a multiple of the block.
        block_size: (height, width) of a block, or an int.
        halo_size: (height, width) of the border, or an int; 0 gives plain blocks.
        query_stride: attention downsampling: queries are every `query_stride`-th pixel of every
            such row, in raster order of the smaller image; keys stay whole.

    Raises:
        ValueError: a size is not positive, the halo is negative, or the stride does not divide
            the block.
    """

    block_size: int | tuple[int, int] = 8
    halo_size: int | tuple[int, int] = 3
    query_stride: int = 1

    causal = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_ints(1, "query_stride")
        object.__setattr__(self, "block_size", pair(self.block_size, "block_size"))
        object.__setattr__(self, "halo_size", pair(self.halo_size, "halo_size", least=0))
        if any(b % self.query_stride for b in self.block):
            raise ValueError(
                f"query_stride must divide the block, got query_stride={self.query_stride} and "
                f"block_size={self.block_size}."
            )

    @property
    def block(self) -> tuple[int, int]:
        """(height, width) of a block."""
        return self.block_size  # type: ignore[return-value]

    @property
    def halo(self) -> tuple[int, int]:
        """(height, width) of the border."""
        return self.halo_size  # type: ignore[return-value]

    @property
    def window(self) -> tuple[int, int]:
        """(height, width) of the keys of a block in the middle of the image."""
        return tuple(b + 2 * h for b, h in zip(self.block, self.halo, strict=True))  # type: ignore[return-value]

    @property
    def query_size(self) -> tuple[int, int]:
        """(height, width) of the queries' image."""
        return -(-self.height // self.query_stride), -(-self.width // self.query_stride)

    def num_queries(self, n_keys: int) -> int:
        if self.query_stride == 1:
            return n_keys
        if n_keys != self.height * self.width:
            raise ValueError(
                f"query_stride={self.query_stride} needs the whole image of "
                f"{self.height} x {self.width} keys, got {n_keys}."
            )
        return self.query_size[0] * self.query_size[1]

    def query_coordinates(self, q_idx: Tensor) -> tuple[Tensor, Tensor]:
        """Query positions -> (row, column) of their pixels among the keys."""
        width = self.query_size[1]
        return q_idx // width * self.query_stride, q_idx % width * self.query_stride

    @property
    def offset_reach(self) -> tuple[int, ...] | None:
        """Without a halo, blocks are the windows of Swin: (2 block - 1) offsets a side."""
        return tuple([b + h - 1 for b, h in zip(self.block, self.halo, strict=True)])

    def _axis_reach(self, i: Any, axis: int) -> tuple[Any, Any]:
        block, halo = self.block[axis], self.halo[axis]
        start = i // block * block
        return start - halo, start + block + halo

    def allows(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        (qy, qx), (ky, kx) = self.query_coordinates(q_idx), self.coordinates(k_idx)
        (top, bottom), (left, right) = self._axis_reach(qy, 0), self._axis_reach(qx, 1)
        return (ky >= top) & (ky < bottom) & (kx >= left) & (kx < right)

    def overlap(self, q_first: Tensor, q_last: Tensor, k_first: Tensor, k_last: Tensor) -> Overlap:
        low = self._axis_reach(self.query_coordinates(q_first)[0], 0)[0]
        high = self._axis_reach(self.query_coordinates(q_last)[0], 0)[1]
        some = (k_last // self.width >= low) & (k_first // self.width < high)
        return some, torch.zeros_like(some)

    _check_pairs = False

    def _axes(self, rows: int) -> list[Axis]:
        stride = self.query_stride
        tile = tile_shape((self.block[0] // stride, self.block[1] // stride), WHOLE_BLOCK)
        return [
            Axis(
                length,
                tile[a],
                lambda i, a=a: self._axis_reach(i * stride, a),  # type: ignore[misc]
                tile_breaks=self.block[a] // stride,
                scale=stride,
            )
            for a, length in enumerate((rows, self.width))
        ]

    def _tiles(self, length: int) -> Tiling:
        if self.query_stride == 1:
            return super()._tiles(length)
        groups = axes_groups(
            self._axes(self.height),
            [self.width, 1],
            self.allows,
            check=False,
            query_strides=[self.query_size[1], 1],
        )
        return Tiling(self.num_queries(length), length, tuple(groups))

    def num_pairs(self, length: int) -> int:
        if length != self.height * self.width:
            return super().num_pairs(length)
        pairs = 1
        for axis, size in enumerate(self.size):  # type: ignore[arg-type]
            reaches = (self._axis_reach(i, axis) for i in range(0, size, self.query_stride))
            pairs *= sum(min(high, size) - max(low, 0) for low, high in reaches)
        return pairs
