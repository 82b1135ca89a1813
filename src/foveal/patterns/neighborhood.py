"""Neighbourhood attention: every pixel, or every block of pixels, has a window of its own."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from foveal.patterns.base import Overlap, Pattern
from foveal.patterns.image import Bounds, ImagePattern, tile_shape
from foveal.patterns.sizes import FORMS, each, each_bool
from foveal.patterns.tiling import MAX_TILE, WHOLE_BLOCK, Tiling, listed_groups

Causal = Literal["raster", "corner"] | tuple[bool, ...] | None
Border = Literal["clip", "shift", "wrap"]
TILE = 8

KEY_COST = 32
"""What fetching a key for a tile costs, in pairs."""


@dataclass(frozen=True)
class Neighborhood(ImagePattern):
    """Each pixel reads a kernel-sized window of pixels.

    Over one to three axes, as in NATTEN: Hassani et al., "Neighborhood Attention Transformer"
    (2023), and "Generalized Neighborhood Attention" (2025) for the stride.

    Args:
        size: (length,), (height, width) or (frames, height, width), or an int for a square image.
        kernel_size: sides of the window, an int or one for each axis. An even one reaches one
            pixel farther back than ahead.
        dilation: distance between neighbouring keys, an int or one for each axis.
        causal: None: centred window. "raster": centred window cut to pixels that come no later
            in raster order. "corner": the window whose last pixel is the query (DALLE-pytorch's
            conv_like). Or for each axis whether the window ends at the query there:
            (True, False, False) is causal in time only.
        border: "clip": keys outside the image do not exist. "shift": the window slides inside,
            so that every pixel has as many keys (NATTEN), but for the axes that are causal.
            "wrap": a row continues in the row before and after, as in DALL-E's convolutional
            pattern (Ramesh et al. 2021, appendix B.1); only of images with causal="raster".
        stride: blocks of so many queries share the window of the one in their middle (or on
            causal axes of the last), an int or one for each axis. With the kernel's own sides,
            these are windows that do not overlap, as in Swin.
        shift: where the first border between such blocks lies, an int or one for each axis.

    Raises:
        ValueError: a size is not positive, a stride is larger than its kernel, or options do not
            combine.
    """

    kernel_size: int | tuple[int, ...] = 5
    dilation: int | tuple[int, ...] = 1
    causal: Causal = None
    border: Border = "clip"
    stride: int | tuple[int, ...] = 1
    shift: int | tuple[int, ...] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        count = len(self.sides)
        for name, least in (("kernel_size", 1), ("dilation", 1), ("stride", 1), ("shift", 0)):
            object.__setattr__(self, name, each(getattr(self, name), name, count, least))
        self._check_words()
        for stride, kernel, first in zip(self._stride, self._kernel, self._shift, strict=True):
            if stride > kernel:
                raise ValueError(
                    f"stride must be at most the kernel, got stride={self.stride} and "
                    f"kernel_size={self.kernel_size}."
                )
            if first >= stride:
                raise ValueError(
                    f"shift must be less than stride, got shift={self.shift} and "
                    f"stride={self.stride}."
                )

    def _check_words(self) -> None:
        if isinstance(self.causal, tuple | list):
            flags = each_bool(self.causal, "causal", len(self.sides))
            object.__setattr__(self, "causal", flags or None)
        elif self.causal not in (None, "raster", "corner"):
            raise ValueError(
                "causal must be None, 'raster', 'corner' or a bool for each of "
                f"{FORMS[len(self.sides) - 1]}, got {self.causal!r}."
            )
        if self.border not in ("clip", "shift", "wrap"):
            raise ValueError(f"border must be 'clip', 'shift' or 'wrap', got {self.border!r}.")
        if self.border == "shift" and self.causal in ("raster", "corner"):
            raise ValueError(
                f"border='shift' would move the window past the query, got causal={self.causal!r};"
                " use border='clip', or a bool for each axis."
            )
        if self.border == "wrap" and self.causal != "raster":
            raise ValueError(
                f"border='wrap' needs causal='raster', got causal={self.causal!r}; use 'clip'."
            )
        if self.border == "wrap" and (
            len(self.sides) != 2
            or set(self._stride) != {1}
            or not all(k % 2 for k in self._kernel)
        ):
            raise ValueError(
                "border='wrap' needs (height, width), odd kernels and a stride of 1, got "
                f"size={self.size}, kernel_size={self.kernel_size}, stride={self.stride}; use "
                "'clip'."
            )

    @property
    def _kernel(self) -> tuple[int, ...]:
        return self.kernel_size  # type: ignore[return-value]

    @property
    def _dilation(self) -> tuple[int, ...]:
        return self.dilation  # type: ignore[return-value]

    @property
    def _stride(self) -> tuple[int, ...]:
        return self.stride  # type: ignore[return-value]

    @property
    def _shift(self) -> tuple[int, ...]:
        return self.shift  # type: ignore[return-value]

    # -- the rule of an axis ------------------------------------------------------------------

    @property
    def _in_order(self) -> bool:
        return self.causal == "raster"

    def _ends(self, axis: int) -> bool:
        """Whether the window ends at the query on this axis."""
        return self.causal[axis] if isinstance(self.causal, tuple) else self.causal == "corner"

    def _cut(self, axis: int) -> bool:
        return self._ends(axis) or (axis == 0 and self._in_order)

    def _uncut(self, at: Any, axis: int) -> Bounds:
        kernel, step, stride = self._kernel[axis], self._dilation[axis], self._stride[axis]
        place, rest = (at, 0) if step == 1 else (at // step, at % step)
        leader = place
        if stride > 1:  # the query whose window the block shares
            first, ends = self._shift[axis], self._ends(axis)
            leader = (place - first) // stride * stride + first
            leader = leader + (stride - 1 if ends else stride // 2)
        start = leader - (kernel - 1 if self._ends(axis) else kernel // 2)
        if self.border == "shift":  # inside the image, or ending there
            # as many coordinates are in the query's residue class
            count = (self.sides[axis] - rest + step - 1) // step
            start = _at_most(start, count - kernel)
            start = start if self._ends(axis) else _at_least_0(start)
        low = start * step + rest
        return low, low + (kernel - 1) * step + 1

    def _step(self, axis: int) -> int:
        return self._dilation[axis]

    def _ahead(self, axis: int) -> bool:
        return self._kernel[axis] > 1

    def _back(self, axis: int) -> int:
        kernel, stride = self._kernel[axis], self._stride[axis]
        if self._ends(axis) or self.border == "shift":
            return (kernel - 1) * self._dilation[axis]
        return (kernel // 2 + stride - 1 - stride // 2) * self._dilation[axis]

    # -- definition ---------------------------------------------------------------------------

    def allows(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        if self.border == "wrap":
            return self._allows_wrapped(q_idx - k_idx)
        return super().allows(q_idx, k_idx)

    def _allows_wrapped(self, distance: Tensor) -> Tensor:
        (up, side), (dy, dx) = (k // 2 for k in self._kernel), self._dilation
        allowed = torch.zeros_like(distance, dtype=torch.bool)
        # distances repeat every row, so the nearest row decides, and its neighbours where the
        # window is wider than the image
        for row in range(up + 1):
            rest = distance - row * dy * self.width
            allowed |= (rest.abs() <= side * dx) & (rest % dx == 0)
        return allowed & (distance >= 0)

    def overlap(self, q_first: Tensor, q_last: Tensor, k_first: Tensor, k_last: Tensor) -> Overlap:
        if self.border != "wrap":
            return super().overlap(q_first, q_last, k_first, k_last)
        bounds = self.horizon()
        assert bounds is not None
        some = (k_first <= q_last) & (q_first - k_last < bounds[1])
        return some, torch.zeros_like(some)

    @property
    def offset_reach(self) -> tuple[int, ...] | None:
        """A window that slides inside reaches kernel - 1 steps."""
        if self.border == "wrap":  # and one that comes from the row before, all of it
            return tuple([side - 1 for side in self.sides])
        return tuple([(k - 1) * d for k, d in zip(self._kernel, self._dilation, strict=True)])

    @property
    def offset_step(self) -> tuple[int, ...]:
        return (1, 1) if self.border == "wrap" else self._dilation

    # -- plan ---------------------------------------------------------------------------------

    @property
    def _tile(self) -> tuple[int, ...]:
        plain, count = set(self._stride) == {1}, len(self.sides)
        if plain and count < 3:
            return (MAX_TILE,) if count == 1 else (TILE, TILE)
        if math.prod(self._stride) > MAX_TILE:  # blocks that share a window
            return tile_shape(self._stride, MAX_TILE if self.causal else WHOLE_BLOCK)
        return self._cheapest()

    def _cheapest(self) -> tuple[int, ...]:
        """The tile, of whole blocks of queries, that costs its queries the least."""
        lengths = [-(-n // s) for n, s in zip(self.sides, self._dilation, strict=True)]
        best, least = self._stride, math.inf
        doublings = range(MAX_TILE.bit_length())
        for powers in itertools.product(doublings, repeat=len(lengths)):
            tile = tuple([s << power for s, power in zip(self._stride, powers, strict=True)])
            if math.prod(tile) > MAX_TILE:
                continue
            keys = queries = 1
            rules = zip(tile, self._kernel, self._stride, lengths, strict=True)
            for side, kernel, stride, length in rules:
                keys *= kernel + side - stride
                queries *= min(side, length)
            cost = keys * (math.prod(tile) + KEY_COST) / queries
            if cost <= least:
                best, least = tile, cost
        return best

    def _breaks(self, axis: int) -> tuple[int | None, int]:
        stride, step = self._stride[axis], self._dilation[axis]
        if stride == 1:
            return None, 0
        return stride * max(1, self._tile[axis] // stride) * step, self._shift[axis] * step

    def _part(self, first: int, count: int, length: int) -> Tiling:
        if self.border == "wrap":
            return Pattern._part(self, first, count, length)
        return super()._part(first, count, length)

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

    # -- decoding and counting ----------------------------------------------------------------

    def reads(self, position: int) -> Tensor:
        if self.border != "wrap":
            return super().reads(position)
        keys = (position - self._wrapped_offsets()).flip(0)
        return keys[keys >= 0]

    def horizon(self) -> tuple[int, int] | None:
        if self.border != "wrap":
            return super().horizon()
        return 0, self._back(0) * self.width + self._back(1) + 1

    def num_pairs(self, length: int) -> int:
        if self.border != "wrap":
            return super().num_pairs(length)
        return int((length - self._wrapped_offsets()).clamp(min=0).sum())


def _at_most(x: Any, most: Any) -> Any:
    """The smaller of ints or tensors."""
    if isinstance(x, Tensor):
        return x.clamp(max=most)
    return min(x, most)


def _at_least_0(x: Any) -> Any:
    return x.clamp(min=0) if isinstance(x, Tensor) else max(x, 0)
