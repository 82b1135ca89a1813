"""Attention along some axes of an image or a clip."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveal.common.words import meant
from foveal.patterns.base import Overlap
from foveal.patterns.image import Bounds, ImagePattern
from foveal.patterns.needs import Stretches
from foveal.patterns.sizes import each_bool
from foveal.patterns.tiling import MAX_TILE, Axis, Tiling
from foveal.patterns.window import SlidingWindow

NAMES = (("length",), ("column", "row"), ("frames", "height", "width"))
"""Names of the axes that are read along, the outermost first, for one to three of them."""

ALIASES = {"time": -3, "frames": -3, "height": -2, "column": -2, "width": -1, "row": -1}


@dataclass(frozen=True)
class Axial(ImagePattern):
    """Each pixel reads its row, or its column; in a clip, what lies along the named axes.

    Args:
        size: (length,), (height, width) or (frames, height, width), or an int for a square image.
        axis: "row" or "column" of an image; of a clip "frames", "height", "width" or several of
            them, such as ("height", "width") for the pixel's own frame. Numbers count the axes
            of size.
        causal: read only pixels that come no later in row-major order; or for each axis whether
            keys after the query are left out: all axes with (True, False, False) read all of the
            frames so far.
        wrap: the row of the DALL-E paper, which reaches back `width` tokens into the row before
            (Ramesh et al. 2021, appendix B.1): `0 <= i - j <= width`. Only causal rows; columns
            are the same with and without.

    Raises:
        ValueError: an unknown axis, or wrap without causal.
    """

    axis: str | int | tuple[str | int, ...] = "row"
    causal: bool | tuple[bool, ...] = False
    wrap: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_bools("wrap")
        names = NAMES[len(self.sides) - 1]
        object.__setattr__(self, "causal", each_bool(self.causal, "causal", len(names)))
        given = self.axis if isinstance(self.axis, tuple | list) else (self.axis,)
        if not given:
            raise ValueError(f"axis must name at least one of {', '.join(names)}, got axis=().")
        found = sorted({_number(one, names) for one in given})
        named = tuple([names[one] for one in found])
        object.__setattr__(self, "axis", named[0] if len(named) == 1 else named)
        if self.wrap and self.causal is not True:
            raise ValueError("wrap=True reaches into the past only; it needs causal=True.")

    @property
    def _along(self) -> tuple[int, ...]:
        """Numbers of the axes that are read along."""
        named = self.axis if isinstance(self.axis, tuple) else (self.axis,)
        names = NAMES[len(self.sides) - 1]
        return tuple([names.index(one) for one in named])

    @property
    def _window(self) -> SlidingWindow | None:
        """The wrapped row is a sliding window along the raster."""
        if self.wrap and self._along == (len(self.sides) - 1,):
            return SlidingWindow(self.width + 1)
        return None

    # -- definition ---------------------------------------------------------------------------

    def _uncut(self, at: Any, axis: int) -> Bounds | None:
        return None if axis in self._along else (at, at + 1)

    def _ahead(self, axis: int) -> bool:
        return axis in self._along

    def _back(self, axis: int) -> int:
        return self.sides[axis] - 1 if axis in self._along else 0

    @property
    def offset_reach(self) -> tuple[int, ...] | None:
        if self._window:  # which comes from the row before
            return tuple([side - 1 for side in self.sides])
        return self._back_reach()

    def allows(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        if self._window:
            return self._window.allows(q_idx, k_idx)
        return super().allows(q_idx, k_idx)

    def overlap(self, q_first: Tensor, q_last: Tensor, k_first: Tensor, k_last: Tensor) -> Overlap:
        if self._window:
            return self._window.overlap(q_first, q_last, k_first, k_last)
        return super().overlap(q_first, q_last, k_first, k_last)

    # -- plan ---------------------------------------------------------------------------------

    def _merged(self, rows: int) -> list[tuple[int, bool, bool]]:
        """(length, read along, cut to the past) of axes, neighbours of a kind as one."""
        found: list[tuple[int, bool, bool]] = []
        for axis, length in enumerate((rows, *self.sides[1:])):
            along = axis in self._along
            cut = along and (self._in_order or self._cut(axis))
            kind = (along, cut)
            # cut axes are one where the order of tokens cuts, which is the order of the joined one
            if found and found[-1][1:] == kind and (self._in_order or not cut):
                length *= found.pop()[0]
            found.append((length, *kind))
        return found

    def _axes(self, rows: int, part: tuple[int, int] | None) -> tuple[list[Axis], list[int]]:
        merged = self._merged(rows)
        lines = merged[0][0] // max(1, rows)  # of a row, where it is joined with axes inside
        axes: list[Axis] = []
        strides: list[int] = []
        stride, left = 1, MAX_TILE
        first = next((i for i, one in enumerate(merged) if one[1]), 0)
        for number, (length, along, cut) in reversed(list(enumerate(merged))):
            # in the order of tokens, only what is outermost of a line tells past from future
            bounded = cut and (number == first or not self._in_order)

            def reach(
                i: int, length: int = length, along: bool = along, cut: bool = bounded
            ) -> tuple[int, int]:
                return (0, i + 1 if cut else length) if along else (i, i + 1)

            tile = left if along else 1
            left = max(1, left // length) if along and length else left
            own = (part[0] * lines, part[1] * lines) if part and not number else None
            axes.insert(0, Axis(length, tile, reach, anchored=cut and not bounded, part=own))
            strides.insert(0, stride)
            stride *= length
        return axes, strides

    def _part(self, first: int, count: int, length: int) -> Tiling:
        if self._window:
            return self._window._part(first, count, length)
        return super()._part(first, count, length)

    def needs(self, first: int, last: int, length: int) -> Stretches:
        if len(self.sides) == 2 and self._along == (0,) and last - first >= self.sides[1]:
            return ((0, last if self._cut(0) else length),)  # a row of queries reads all columns
        return super().needs(first, last, length)

    # -- decoding and counting ----------------------------------------------------------------

    def reads(self, position: int) -> Tensor:
        if not self._window:
            return super().reads(position)
        return torch.arange(max(0, position - self.width), position + 1, device="cpu")

    def horizon(self) -> tuple[int, int] | None:
        return (0, self.width + 1) if self._window else super().horizon()

    def keeps(self, position: int) -> range | Tensor:
        if self._window or not self.is_causal:
            return super().keeps(position)
        inner = [(rows, along) for rows, along, _ in self._merged(self.sides[0])]
        if inner[-1][1] and [along for _, along in inner].count(True) == 1:  # a run of tokens
            line = inner[-1][0]
            return range((position + 1) // line * line, position + 1)
        # what stands last on its lines is read by nobody who is still to come
        still = torch.arange(position + 1, device="cpu")
        last, places = still, self.coordinates(still)
        for axis in self._along:
            last = last + (self.sides[axis] - 1 - places[axis]) * math.prod(self.sides[axis + 1 :])
        return still[last > position]

    def num_pairs(self, length: int) -> int:
        if self._window:
            return self._window.num_pairs(length)
        self.check_length(length)
        merged = self._merged(self.sides[0])
        places = [place for place, (_, along, _) in enumerate(merged) if along]
        if len(places) > 1:
            return super().num_pairs(length)
        line, _, cut = merged[places[0]]
        stride = math.prod([other for other, *_ in merged[places[0] + 1 :]])
        blocks, rest = divmod(length, line * stride)
        rows, longer = divmod(rest, stride)
        lines = [(blocks * stride, line), (longer, rows + 1), (stride - longer, rows)]
        return sum(count * (n * (n + 1) // 2 if cut else n * n) for count, n in lines)


def _number(axis: Any, names: tuple[str, ...]) -> int:
    """The number of an axis that goes by a name or a number."""
    if isinstance(axis, str):
        if axis in names:
            return names.index(axis)
        if -ALIASES.get(axis, -9) <= len(names):
            return len(names) + ALIASES[axis]
    elif isinstance(axis, int) and not isinstance(axis, bool) and 0 <= axis < len(names):
        return axis
    near = meant(str(axis), names)
    hint = f"; did you mean {near!r}?" if near else "."
    raise ValueError(
        f"axis must be {', '.join(map(repr, names))} (or several, or numbers below {len(names)}), "
        f"got axis={axis!r}{hint}"
    )
