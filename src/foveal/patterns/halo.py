"""Blocked local attention with a halo (HaloNet)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveal.patterns.base import pair
from foveal.patterns.image import ImagePattern, Rows, tile_shape
from foveal.patterns.tiling import Axis

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

    Raises:
        ValueError: a size is not positive or the halo is negative.
    """

    block_size: int | tuple[int, int] = 8
    halo_size: int | tuple[int, int] = 3

    causal = False

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "block_size", pair(self.block_size, "block_size"))
        object.__setattr__(self, "halo_size", pair(self.halo_size, "halo_size", least=0))

    def _axis_reach(self, i: int, axis: int) -> tuple[int, int]:
        block, halo = self.block_size[axis], self.halo_size[axis]  # type: ignore[index]
        start = i // block * block
        return start - halo, start + block + halo

    def allows(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        inside = None
        axes = zip(self.coordinates(q_idx), self.coordinates(k_idx), strict=True)
        for axis, (q, k) in enumerate(axes):
            low, high = self._axis_reach(q, axis)  # type: ignore[arg-type]
            here = (k >= low) & (k < high)
            inside = here if inside is None else inside & here
        assert inside is not None
        return inside

    _check_pairs = False

    def _axes(self, rows: int) -> list[Axis]:
        block: tuple[int, int] = self.block_size  # type: ignore[assignment]
        tile = tile_shape(block, WHOLE_BLOCK)
        # anchored off: with no mask inside a tile only the ranges matter
        return [
            Axis(length, tile[a], lambda i, a=a: self._axis_reach(i, a), 1, block[a], False)
            for a, length in enumerate((rows, self.width))
        ]

    def _row_reach(self, rows: Tensor) -> Rows:
        low, high = self._axis_reach(rows, 0)  # type: ignore[arg-type]
        return low, high - 1  # type: ignore[return-value]

    def num_pairs(self, length: int) -> int:
        whole = self._separable_pairs(
            length, lambda i: range(*self._axis_reach(i, 0)), lambda i: range(*self._axis_reach(i, 1))
        )
        return super().num_pairs(length) if whole is None else whole


def relative_positions(pattern: Halo, axis: int) -> Tensor:
    """Key minus query coordinate along an axis inside a block's window: (block, block + 2 halo)."""
    block, halo = pattern.block_size[axis], pattern.halo_size[axis]  # type: ignore[index]
    keys = torch.arange(-halo, block + halo)
    return keys[None, :] - torch.arange(block)[:, None]
