"""Blocked local attention with a halo (HaloNet)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from foveal.patterns.image import Bounds, ImagePattern, tile_shape
from foveal.patterns.sizes import each, each_bool
from foveal.patterns.tiling import WHOLE_BLOCK


@dataclass(frozen=True)
class Halo(ImagePattern):
    """All pixels of a block read the block and a border of `halo_size` pixels around it.

    Pixels beyond the image do not exist. Vaswani et al., "Scaling Local Self-Attention for
    Parameter Efficient Visual Backbones" (2021), section 2.2.

    Args:
        size: (length,), (height, width) or (frames, height, width), or an int for a square image;
            need not be a multiple of the block.
        block_size: tokens of a block, an int or one for each axis.
        halo_size: width of the border, an int or one for each axis; 0 gives plain blocks.
        query_stride: attention downsampling: queries are every `query_stride`-th pixel of every
            such row, in raster order of the smaller image; keys stay whole.
        causal: read what comes no later in row-major order; or for each axis whether keys after
            the query are left out: (True, False, False) is causal in time only.

    Raises:
        ValueError: a size is not positive, the halo is negative, the stride does not divide
            the block, or it is combined with `causal`.
    """

    block_size: int | tuple[int, ...] = 8
    halo_size: int | tuple[int, ...] = 3
    query_stride: int = 1
    causal: bool | tuple[bool, ...] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_ints(1, "query_stride")
        count = len(self.sides)
        object.__setattr__(self, "block_size", each(self.block_size, "block_size", count))
        object.__setattr__(self, "halo_size", each(self.halo_size, "halo_size", count, 0))
        object.__setattr__(self, "causal", each_bool(self.causal, "causal", count))
        if any(b % self.query_stride for b in self.block):
            raise ValueError(
                f"query_stride must divide the block, got query_stride={self.query_stride} and "
                f"block_size={self.block_size}."
            )
        if self.causal and self.query_stride > 1:
            raise ValueError(
                "causal needs a query for each pixel, got query_stride="
                f"{self.query_stride} and causal={self.causal}; use query_stride=1."
            )

    @property
    def block(self) -> tuple[int, ...]:
        """Sides of a block, (height, width) of an image."""
        return self.block_size  # type: ignore[return-value]

    @property
    def halo(self) -> tuple[int, ...]:
        """Width of the border on each axis."""
        return self.halo_size  # type: ignore[return-value]

    @property
    def window(self) -> tuple[int, ...]:
        """Sides of the window of keys of a block in the middle of the image."""
        return tuple([b + 2 * h for b, h in zip(self.block, self.halo, strict=True)])

    @property
    def query_size(self) -> tuple[int, ...]:
        """Sides of the queries' image."""
        return tuple([-(-side // self.query_stride) for side in self.sides])

    @property
    def _scale(self) -> int:
        return self.query_stride

    def num_queries(self, n_keys: int) -> int:
        if self.query_stride == 1:
            return n_keys
        queries, keys = 1, 1
        for few, side in zip(self.query_size, self.sides, strict=True):
            queries, keys = queries * few, keys * side
        if n_keys != keys:
            raise ValueError(
                f"query_stride={self.query_stride} needs the whole image of "
                f"{' x '.join(map(str, self.sides))} keys, got {n_keys}."
            )
        return queries

    def _uncut(self, at: Any, axis: int) -> Bounds:
        block, halo = self.block[axis], self.halo[axis]
        start = at // block * block
        return start - halo, start + block + halo

    def _ahead(self, axis: int) -> bool:
        return self.window[axis] > 1

    def _back(self, axis: int) -> int:
        return self.block[axis] - 1 + self.halo[axis]

    @property
    def _check_pairs(self) -> bool:
        return bool(self.causal)

    @property
    def _tile(self) -> tuple[int, ...]:
        return tile_shape([b // self.query_stride for b in self.block], WHOLE_BLOCK)

    def _breaks(self, axis: int) -> tuple[int, int]:
        return self.block[axis] // self.query_stride, 0

    def num_pairs(self, length: int) -> int:
        self.num_queries(length)
        return super().num_pairs(length)
