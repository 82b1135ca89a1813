"""Attention along one axis of an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from foveal.patterns.base import Overlap
from foveal.patterns.image import ImagePattern, Rows
from foveal.patterns.tiling import MAX_TILE, Axis, Tiling
from foveal.patterns.window import SlidingWindow


@dataclass(frozen=True)
class Axial(ImagePattern):
    """Each pixel reads its row, or its column.

    Args:
        size: (height, width) of the image, or an int.
        axis: "row" or "column".
        causal: read only pixels that come no later in raster order.
        wrap: the row of the DALL-E paper, which reaches back `width` tokens into the row before
            (Ramesh et al. 2021, appendix B.1): `0 <= i - j <= width`. Only causal rows; columns
            are the same with and without.

    Raises:
        ValueError: an unknown axis, or wrap without causal.
    """

    axis: Literal["row", "column"] = "row"
    causal: bool = False
    wrap: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_bools("causal", "wrap")
        if self.axis not in ("row", "column"):
            raise ValueError(f"axis must be 'row' or 'column', got axis={self.axis!r}.")
        if self.wrap and not self.causal:
            raise ValueError("wrap=True reaches into the past only; it needs causal=True.")

    @property
    def _window(self) -> SlidingWindow | None:
        """The wrapped row is a sliding window along the raster."""
        return SlidingWindow(self.width + 1) if self.wrap and self.axis == "row" else None

    @property
    def offset_reach(self) -> tuple[int, ...] | None:
        if self._window:  # which comes from the row before
            return super().offset_reach
        return (0, self.width - 1) if self.axis == "row" else (self.height - 1, 0)

    def allows(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        if self._window:
            return self._window.allows(q_idx, k_idx)
        along = 0 if self.axis == "row" else 1
        same = self.coordinates(q_idx)[along] == self.coordinates(k_idx)[along]
        return same & (k_idx <= q_idx) if self.causal else same

    def overlap(self, q_first: Tensor, q_last: Tensor, k_first: Tensor, k_last: Tensor) -> Overlap:
        if self._window:
            return self._window.overlap(q_first, q_last, k_first, k_last)
        return super().overlap(q_first, q_last, k_first, k_last)

    def _row_reach(self, rows: Tensor) -> Rows:
        if self.axis == "row":
            return rows, rows
        return torch.zeros_like(rows), rows if self.causal else rows + self.height

    def _axes(self, rows: int) -> list[Axis]:
        def own(i: int) -> tuple[int, int]:
            return i, i + 1

        def line(i: int) -> tuple[int, int]:
            return 0, i + 1 if self.causal else max(rows, self.width)

        along = self.axis == "row"
        return [
            Axis(rows, 1 if along else MAX_TILE, own if along else line, anchored=False),
            Axis(self.width, MAX_TILE if along else 1, line if along else own, anchored=False),
        ]

    def _tiles(self, length: int) -> Tiling:
        return self._window._tiles(length) if self._window else super()._tiles(length)

    def reads(self, position: int) -> Tensor:
        self._require_causal("reads")
        if self.axis == "column":
            return torch.arange(position % self.width, position + 1, self.width, device="cpu")
        first = position - self.width if self.wrap else position // self.width * self.width
        return torch.arange(max(0, first), position + 1, device="cpu")

    def horizon(self) -> tuple[int, int] | None:
        if not self.causal:
            return None
        if self.axis == "column":
            return 0, (self.height - 1) * self.width + 1
        return 0, self.width + bool(self.wrap)

    def keeps(self, position: int) -> range | Tensor:
        if self.axis == "row" and self.causal and not self.wrap:
            return range((position + 1) // self.width * self.width, position + 1)
        if self.axis == "column" and self.causal:
            # a pixel in the last row has no pixel below that could read its column
            still = torch.arange(position + 1, device="cpu")
            last_row = (self.height - 1) * self.width
            return still[still % self.width > position - last_row]
        return super().keeps(position)

    def num_pairs(self, length: int) -> int:
        if self._window:
            return self._window.num_pairs(length)
        rows, rest = divmod(length, self.width)
        if self.axis == "row":
            lines = [(rows, self.width), (1, rest)]
        else:
            lines = [(rest, rows + 1), (self.width - rest, rows)]
        return sum(count * (n * (n + 1) // 2 if self.causal else n * n) for count, n in lines)
