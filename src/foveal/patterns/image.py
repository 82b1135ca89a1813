"""What patterns on a pixel grid share: coordinates, tiles of rows and columns, partial images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveal.patterns.base import Overlap, Pattern
from foveal.patterns.sizes import pair
from foveal.patterns.tiling import Axis, TileGroup, Tiling, axes_groups, consecutive, listed_groups

Rows = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class ImagePattern(Pattern):
    """Tokens are the pixels of an image in row-major order: position = row * width + column.

    A sequence may be shorter than the image: it is then the image's first pixels in raster order,
    as when a picture is drawn token by token.

    Args:
        size: (height, width), or an int for a square.
    """

    size: int | tuple[int, int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", pair(self.size, "size"))

    @property
    def height(self) -> int:
        return self.size[0]  # type: ignore[index]

    @property
    def width(self) -> int:
        return self.size[1]  # type: ignore[index]

    def check_length(self, length: int) -> None:
        super().check_length(length)
        if length > self.height * self.width:
            raise ValueError(
                f"length must be at most height * width = {self.height * self.width} of "
                f"size={self.size}, got {length=}; (height, width) is the order of size."
            )

    @property
    def grid(self) -> tuple[int, ...]:
        return self.size  # type: ignore[return-value]

    def coordinates(self, idx: Tensor) -> tuple[Tensor, Tensor]:
        """Positions -> (row, column), each of the shape of `idx`."""
        return idx // self.width, idx % self.width

    def _axes(self, rows: int) -> list[Axis]:
        """The tiles of an image of `rows` full rows: [row axis, column axis]."""
        raise NotImplementedError

    always_reads = True
    _check_pairs = True  # False where every pair inside the ranges of the axes is allowed

    def _row_reach(self, rows: Tensor) -> Rows:
        """First and last key row (inclusive, not clipped) that queries in these rows may read."""
        return torch.zeros_like(rows), torch.full_like(rows, self.height)

    def overlap(self, q_first: Tensor, q_last: Tensor, k_first: Tensor, k_last: Tensor) -> Overlap:
        low = self._row_reach(q_first // self.width)[0]
        high = self._row_reach(q_last // self.width)[1]
        some = (k_last // self.width >= low) & (k_first // self.width <= high)
        if self.is_causal:
            some = some & (k_first <= q_last)
        return some, torch.zeros_like(some)

    def _tiles(self, length: int) -> Tiling:
        rows, rest = divmod(length, self.width)
        groups: list[TileGroup] = []
        first = 0
        if rest == 0 or self.is_causal:
            groups += axes_groups(
                self._axes(rows), [self.width, 1], self.allows, self._check_pairs
            )
            first = rows * self.width
        if first < length:
            groups += listed_groups(
                self.allows,
                consecutive(length, first),
                lambda queries: self._candidates(queries, length),
            )
        return Tiling(length, length, tuple(groups))


def tile_shape(block: tuple[int, int], most: int) -> tuple[int, int]:
    """The largest tile inside a block with at most `most` pixels, cut along the longer side."""
    height, width = block
    while height * width > most:
        if height >= width:
            height = -(-height // 2)
        else:
            width = -(-width // 2)
    return height, width
