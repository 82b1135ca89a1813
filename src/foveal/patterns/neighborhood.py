"""Two-dimensional neighbourhood attention: every pixel has a window of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from foveal.patterns.image import ImagePattern, Rows
from foveal.patterns.sizes import pair
from foveal.patterns.tiling import Axis, Tiling, listed_groups

Causal = Literal["raster", "corner"] | None
Border = Literal["clip", "shift", "wrap"]
TILE = 8


@dataclass(frozen=True)
class Neighborhood(ImagePattern):
    """Each pixel reads a kernel-sized window of pixels.

    Args:
        size: (height, width) of the image, or an int.
        kernel_size: (height, width) of the window, or an int; odd where the window is centred.
        dilation: distance between neighbouring keys, (vertical, horizontal) or an int.
        causal: None: centred window. "raster": centred window cut to pixels that come no later
            in raster order. "corner": the window whose last pixel is the query (DALLE-pytorch's
            conv_like).
        border: "clip": keys outside the image do not exist. "shift": the window slides inside,
            so that every pixel has as many keys (NATTEN); not causal. "wrap": a row continues in
            the row before and after, as in DALL-E's convolutional pattern (Ramesh et al. 2021,
            appendix B.1); only with causal="raster".

    Raises:
        ValueError: a size is not positive, a centred kernel is even, or options do not combine.
    """

    kernel_size: int | tuple[int, int] = 5
    dilation: int | tuple[int, int] = 1
    causal: Causal = None
    border: Border = "clip"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "kernel_size", pair(self.kernel_size, "kernel_size"))
        object.__setattr__(self, "dilation", pair(self.dilation, "dilation"))
        if self.causal not in (None, "raster", "corner"):
            raise ValueError(f"causal must be None, 'raster' or 'corner', got {self.causal!r}.")
        if self.border not in ("clip", "shift", "wrap"):
            raise ValueError(f"border must be 'clip', 'shift' or 'wrap', got {self.border!r}.")
        if self.causal != "corner" and any(k % 2 == 0 for k in self._kernel):
            raise ValueError(
                f"kernel_size must be odd for a centred window, got {self.kernel_size}; use "
                f"{tuple(k + 1 - k % 2 for k in self._kernel)}, or causal='corner'."
            )
        if self.border == "shift" and self.causal:
            raise ValueError(
                f"border='shift' would move the window past the query, got causal={self.causal!r};"
                " use border='clip'."
            )
        if self.border == "wrap" and self.causal != "raster":
            raise ValueError(
                f"border='wrap' needs causal='raster', got causal={self.causal!r}; use 'clip'."
            )

    @property
    def _kernel(self) -> tuple[int, int]:
        return self.kernel_size  # type: ignore[return-value]

    @property
    def _dilation(self) -> tuple[int, int]:
        return self.dilation  # type: ignore[return-value]

    # -- definition -------------------------------------------------------------------------

    def allows(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        if self.border == "wrap":
            return self._allows_wrapped(q_idx - k_idx)
        inside = None
        axes = zip(self.coordinates(q_idx), self.coordinates(k_idx), strict=True)
        for axis, (q, k) in enumerate(axes):
            here = self._axis_allows(q, k, axis)
            inside = here if inside is None else inside & here
        assert inside is not None
        return inside & (k_idx <= q_idx) if self.causal == "raster" else inside

    def _axis_allows(self, q: Tensor, k: Tensor, axis: int) -> Tensor:
        kernel, step = self._kernel[axis], self._dilation[axis]
        distance = q - k
        aligned = distance % step == 0
        if self.causal == "corner":
            return aligned & (distance >= 0) & (distance < kernel * step)
        if self.border == "clip":
            return aligned & (distance.abs() <= kernel // 2 * step)
        length = self.size[axis]  # type: ignore[index]
        in_class = (length - q % step + step - 1) // step
        start = (q // step - kernel // 2).minimum(in_class - kernel).clamp(min=0)
        return aligned & (k // step >= start) & (k // step < start + kernel)

    def _allows_wrapped(self, distance: Tensor) -> Tensor:
        (up, side), (dy, dx) = (k // 2 for k in self._kernel), self._dilation
        allowed = torch.zeros_like(distance, dtype=torch.bool)
        # distances repeat every row, so the nearest row decides, and its neighbours where the
        # window is wider than the image
        for row in range(up + 1):
            rest = distance - row * dy * self.width
            allowed |= (rest.abs() <= side * dx) & (rest % dx == 0)
        return allowed & (distance >= 0)

    @property
    def offset_reach(self) -> tuple[int, ...] | None:
        """A window that slides inside reaches kernel - 1 steps."""
        if self.border == "wrap":
            return super().offset_reach
        return tuple([(k - 1) * d for k, d in zip(self._kernel, self._dilation, strict=True)])

    @property
    def offset_step(self) -> tuple[int, ...]:
        return super().offset_step if self.border == "wrap" else self._dilation

    # -- plan -------------------------------------------------------------------------------

    def _axis_reach(self, i: int, axis: int, length: int) -> tuple[int, int]:
        kernel, step = self._kernel[axis], self._dilation[axis]
        if self.causal == "corner":
            return i - (kernel - 1) * step, i + 1
        if self.border == "shift":
            in_class = -(-(length - i % step) // step)
            start = max(0, min(i // step - kernel // 2, in_class - kernel)) * step + i % step
            return start, start + (kernel - 1) * step + 1
        after = 0 if self.causal == "raster" and axis == 0 else kernel // 2 * step
        return i - kernel // 2 * step, i + after + 1

    def _axes(self, rows: int) -> list[Axis]:
        return [
            Axis(
                length,
                TILE,
                lambda i, a=a: self._axis_reach(i, a, self.size[a]),  # type: ignore[misc, index]
                self._dilation[a],
            )
            for a, length in enumerate((rows, self.width))
        ]

    def _row_reach(self, rows: Tensor) -> Rows:
        span = (self._kernel[0] - 1) * self._dilation[0]
        extra = 1 + self._kernel[1] * self._dilation[1] // self.width
        return rows - span - extra, rows + span + extra

    def _tiles(self, length: int) -> Tiling:
        if self.border != "wrap":
            return super()._tiles(length)
        offsets = self._wrapped_offsets()

        def candidates(queries: Tensor) -> Tensor:
            keys = (queries[:, None] - offsets).unique()
            return keys[keys >= 0]

        rows = -(-length // self.width)
        tiles = []
        for top in range(0, rows, TILE):
            for left in range(0, self.width, TILE):
                y = torch.arange(top, min(top + TILE, rows), device="cpu")[:, None]
                x = torch.arange(left, min(left + TILE, self.width), device="cpu")
                tile = (y * self.width + x).reshape(-1)
                tiles.append(tile[tile < length])
        groups = listed_groups(self.allows, [t for t in tiles if len(t)], candidates)
        return Tiling(length, length, tuple(groups))

    def _wrapped_offsets(self) -> Tensor:
        """Distances query - key of the wrapped window, ascending."""
        (up, side), (dy, dx) = (k // 2 for k in self._kernel), self._dilation
        rows = torch.arange(up + 1, device="cpu")[:, None] * dy * self.width
        offsets = (rows + torch.arange(-side, side + 1, device="cpu") * dx).reshape(-1).unique()
        return offsets[offsets >= 0]

    # -- decoding and counting --------------------------------------------------------------

    def reads(self, position: int) -> Tensor:
        self._require_causal("reads")
        if self.border == "wrap":
            keys = (position - self._wrapped_offsets()).flip(0)
            return keys[keys >= 0]
        y, x = divmod(position, self.width)
        grids = []
        for axis, (i, length) in enumerate(zip((y, x), (y + 1, self.width), strict=True)):
            low, high = self._axis_reach(i, axis, length)
            step = self._dilation[axis]
            low += -(low // step) * step if low < 0 else 0
            grids.append(torch.arange(low, min(high, length), step, device="cpu"))
        keys = (grids[0][:, None] * self.width + grids[1]).reshape(-1)
        return keys[keys <= position]

    def horizon(self) -> tuple[int, int] | None:
        if not self.causal:
            return None
        (kh, kw), (dy, dx) = self._kernel, self._dilation
        if self.causal == "raster":
            kh, kw = kh // 2 + 1, kw // 2 + 1
        rows, columns = (kh - 1) * dy, (kw - 1) * dx
        if self.border == "clip":
            rows, columns = min(rows, self.height - 1), min(columns, self.width - 1)
        return 0, rows * self.width + columns + 1

    def num_pairs(self, length: int) -> int:
        if self.border == "wrap":
            return int((length - self._wrapped_offsets()).clamp(min=0).sum())

        if length != self.height * self.width:
            return super().num_pairs(length)
        centred = self._pairs_along(0) * self._pairs_along(1)
        # the centred window is symmetric: its raster half holds each pair once, and the pixel
        return (centred + length) // 2 if self.causal == "raster" else centred

    def _pairs_along(self, axis: int) -> int:
        """Allowed pairs of coordinates on one axis, before the cut to the past."""
        length, step = self.size[axis], self._dilation[axis]  # type: ignore[index]
        pairs = 0
        for i in range(length):
            low, high = self._axis_reach(i, axis, length)
            if self.causal == "raster":  # counted as if centred
                low, high = (
                    i - self._kernel[axis] // 2 * step,
                    i + self._kernel[axis] // 2 * step + 1,
                )
            pairs += sum(0 <= j < length for j in range(low, high, step))
        return pairs
