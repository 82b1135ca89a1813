"""What patterns over one to three axes share: everything that follows from a rule for each axis.

A query reads the keys that lie within its reach on every axis: a clip is (frames, height, width),
an image (height, width), a line (length,). Tokens stand in row-major order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveal.patterns.base import Overlap, Pattern
from foveal.patterns.sizes import FORMS, sides
from foveal.patterns.tiling import (
    Axis,
    TileGroup,
    Tiling,
    axes_groups,
    consecutive,
    listed_groups,
)

Bounds = tuple[Any, Any]
"""First coordinate that is read and the one after the last: ints, or tensors of queries."""


class GridPattern(Pattern, abstract=True):
    """Tokens stand on a grid of `sides`, and what a query reads is a range on each axis.

    A subclass gives `_uncut`, and `_back` where it is causal; all else follows. Where `causal` is
    True, keys come no later than the query in row-major order; where it is a tuple, they lie no
    farther than the query on the axes that it names. A sequence may be shorter than the grid: it
    is then the grid's first tokens, as when a picture is drawn token by token.
    """

    always_reads = True

    @property
    def sides(self) -> tuple[int, ...]:
        """Lengths of the axes, the outermost first."""
        raise NotImplementedError

    @property
    def query_size(self) -> tuple[int, ...]:
        """Lengths of the axes of the queries' grid."""
        return self.sides

    @property
    def _scale(self) -> int:
        """Key coordinates from one query to the next."""
        return 1

    # -- the rule of an axis ------------------------------------------------------------------

    def _uncut(self, at: Any, axis: int) -> Bounds | None:
        """What queries at these coordinates (an int or a tensor) read before the cut to the past.

        It holds the query itself and is not clipped to the grid; None is all of the axis.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must define _uncut or allows and _tiles."
        )

    def _step(self, axis: int) -> int:
        """Distance between neighbouring keys on an axis; the query is one of them."""
        return 1

    def _ahead(self, axis: int) -> bool:
        """Whether a span may hold coordinates after the query's."""
        return True

    def _back(self, axis: int) -> int:
        """How far before the query a span begins at most."""
        return self.sides[axis] - 1

    @property
    def _in_order(self) -> bool:
        """Whether keys come no later than their query in row-major order."""
        return getattr(self, "causal", False) is True

    def _cut(self, axis: int) -> bool:
        """Whether keys after the query on this axis are left out."""
        causal = getattr(self, "causal", False)
        return causal[axis] if isinstance(causal, tuple) else axis == 0 and self._in_order

    @property
    def is_causal(self) -> bool:
        if self._in_order:
            return True
        axes = range(len(self.sides))
        cut = [self._cut(axis) for axis in axes]
        return True in cut and all(c or not self._ahead(a) for a, c in zip(axes, cut, strict=True))

    def reach(self, at: Any, axis: int) -> Bounds | None:
        """First and last + 1 coordinate of the keys of queries at these coordinates on an axis.

        Args:
            at: an int, or a tensor of coordinates of queries among the keys.

        Returns:
            two of the same, not clipped to the grid; None where all of the axis is read.
        """
        span = self._uncut(at, axis)
        if not self._cut(axis):
            return span
        return (0 if span is None else span[0]), at + 1

    # -- definition ---------------------------------------------------------------------------

    def check_length(self, length: int) -> None:
        super().check_length(length)
        most = math.prod(self.sides)
        if length > most:
            form = FORMS[len(self.sides) - 1]
            raise ValueError(
                f"length must be at most {form.strip('(,)').replace(', ', ' * ')} = {most} of "
                f"size={self.sides}, got {length=}; {form} is the order of size."
            )

    @property
    def natural_length(self) -> int | None:
        return None if self.grid is None else math.prod(self.grid)

    @property
    def grid(self) -> tuple[int, ...] | None:
        return self.sides

    @property
    def offset_reach(self) -> tuple[int, ...] | None:
        """As far as the span of a query goes back; ahead it goes no farther.

        Blocks without a halo are the windows of Swin: 2 block - 1 offsets a side.
        """
        return self._back_reach()

    def _back_reach(self) -> tuple[int, ...]:
        # apart, for the compiler does not follow super() to a property
        return tuple([self._back(axis) for axis in range(len(self.sides))])

    @property
    def offset_step(self) -> tuple[int, ...]:
        return tuple([self._step(axis) for axis in range(len(self.sides))])

    def coordinates(self, idx: Tensor) -> tuple[Tensor, ...]:
        """Positions -> the coordinate on each axis, (row, column) of an image."""
        return _unravel(idx, self.sides)

    def query_coordinates(self, q_idx: Tensor) -> tuple[Tensor, ...]:
        """Positions of queries (any shape) -> their coordinates among the keys."""
        if self._scale == 1:
            return self.coordinates(q_idx)
        return tuple([at * self._scale for at in _unravel(q_idx, self.query_size)])

    def allows(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        allowed = k_idx <= q_idx if self._in_order else None
        queries, keys = self.query_coordinates(q_idx), self.coordinates(k_idx)
        for axis, (q, k) in enumerate(zip(queries, keys, strict=True)):
            bounds = self.reach(q, axis)
            if bounds is None:
                continue
            here = (k >= bounds[0]) & (k < bounds[1])
            if self._step(axis) > 1:
                here = here & ((q - k) % self._step(axis) == 0)
            allowed = here if allowed is None else allowed & here
        return torch.ones_like(q_idx + k_idx, dtype=torch.bool) if allowed is None else allowed

    def overlap(self, q_first: Tensor, q_last: Tensor, k_first: Tensor, k_last: Tensor) -> Overlap:
        if self._in_order:
            some, every = k_first <= q_last, k_last <= q_first
        else:
            some = every = torch.ones_like(q_first + k_first, dtype=torch.bool)
        queries = _box(q_first, q_last, self.query_size)
        keys = _box(k_first, k_last, self.sides)
        for axis, ((q0, q1), (k0, k1)) in enumerate(zip(queries, keys, strict=True)):
            first, last = (self.reach(q * self._scale, axis) for q in (q0, q1))
            if first is None or last is None:
                continue
            # reaches grow with the query, but for its place among the keys that a step leaves out
            slack = self._step(axis) - 1
            some = some & (k1 >= first[0] - slack) & (k0 < last[1] + slack)
            every = every & (k0 >= last[0]) & (k1 < first[1]) & (slack == 0)
        return some, every

    # -- plan ---------------------------------------------------------------------------------

    @property
    def _check_pairs(self) -> bool:
        """False where every pair inside the ranges of a tile's axes is allowed."""
        return True

    @property
    def _tile(self) -> tuple[int, ...]:
        """Queries of a tile on each axis."""
        raise NotImplementedError

    def _breaks(self, axis: int) -> tuple[int | None, int]:
        """(every, first): tiles do not straddle first + n * every; None: they may."""
        return None, 0

    def _axes(self, rows: int, part: tuple[int, int] | None) -> tuple[list[Axis], list[int]]:
        """The tiles of a grid of `rows` on its outermost axis; tokens from a key to the next.

        part: the rows whose queries are wanted, or None for all.
        """
        lengths, scale = (rows, *self.sides[1:]), self._scale
        axes = []
        for axis, (length, tile) in enumerate(zip(lengths, self._tile, strict=True)):
            every, first = self._breaks(axis)

            def reach(i: int, axis: int = axis, length: int = length) -> tuple[int, int]:
                return self.reach(i * scale, axis) or (0, length)

            own = part if axis == 0 else None
            axes.append(
                Axis(length, tile, reach, self._step(axis), every, True, scale, own, first)
            )
        return axes, _strides(lengths)

    def _part(self, first: int, count: int, length: int) -> Tiling:
        row, stop = math.prod(self.sides[1:]), first + count
        rows, rest = divmod(length, row)
        low, high, part = stop, stop, None
        whole = first == 0 and count == self.num_queries(length)
        # whole rows do without the tokens of a row that has only begun where none is read later
        if rest == 0 or self._cut(0) or self.is_causal:
            if whole:
                low, high = 0, count if rest == 0 else rows * row
            elif self._scale == 1:
                ends = -(-first // row), min(stop // row, rows) if rest else stop // row
                if ends[0] < ends[1]:
                    low, high, part = ends[0] * row, ends[1] * row, ends
        groups: list[TileGroup] = []
        if low < high:
            axes, strides = self._axes(rows, part)
            own = None if self._scale == 1 else _strides(self.query_size)
            groups += axes_groups(axes, strides, self.allows, self._check_pairs, own)
        groups += listed_groups(
            self.allows,
            [*consecutive(low, first), *consecutive(stop, high)],
            lambda queries: self._candidates(queries, length),
        )
        return Tiling(count, length, tuple(groups)).shift(-first, 0, count, length)

    def _span(self, first: int, count: int, length: int) -> tuple[int, int]:
        if len(self.sides) > 1:
            return super()._span(first, count, length)
        last, slack = first + max(0, count - 1), self._step(0) - 1
        low, high = (self.reach(at, 0) or (0, length) for at in (first, last))
        return max(0, low[0] - slack), min(length, high[1] + slack)

    # -- decoding and counting ----------------------------------------------------------------

    def reads(self, position: int) -> Tensor:
        self._require_causal("reads")
        keys, rest = torch.zeros(1, dtype=torch.long, device="cpu"), position
        for axis, stride in enumerate(_strides(self.sides)):
            at, rest = divmod(rest, stride)
            side, step = self.sides[axis], self._step(axis)
            low, high = self.reach(at, axis) or (0, side)
            low = at % step if low < 0 else low
            line = torch.arange(low, max(low, min(high, side)), step, device="cpu") * stride
            keys = (keys[:, None] + line).reshape(-1)
        return keys[keys <= position]

    def horizon(self) -> tuple[int, int] | None:
        if not self.is_causal:
            return None
        back = 0
        for axis, stride in enumerate(_strides(self.sides)):
            back += min(self._back(axis), self.sides[axis] - 1) * stride
        return 0, back + 1

    def num_pairs(self, length: int) -> int:
        self.check_length(length)
        rows, rest = divmod(length, math.prod(self.sides[1:]))
        if rest:
            return super().num_pairs(length)
        total = ordered = 1
        for axis, side in reversed(list(enumerate((rows, *self.sides[1:])))):
            before, same, after = self._pairs_along(axis, side)
            # earlier on this axis and anything on those inside, or as early and earlier inside
            ordered = before * total + same * ordered
            total *= before + same + after
        return ordered if self._in_order else total

    def _pairs_along(self, axis: int, length: int) -> tuple[int, int, int]:
        """Allowed pairs of coordinates on an axis: keys before, at and after their query."""
        at = torch.arange(0, length, self._scale, device="cpu")
        low, high = self._clipped(at, axis, length)
        step = self._step(axis)
        before, after = (at - low) // step, (high - 1 - at) // step
        return int(before.sum()), len(at), int(after.sum())

    def _clipped(self, at: Tensor, axis: int, length: int) -> tuple[Tensor, Tensor]:
        """The reach of queries (queries,) on an axis that is cut to its first `length`."""
        low, high = self.reach(at, axis) or (0, torch.full_like(at, length))
        low, step = low + torch.zeros_like(at), self._step(axis)
        low = torch.where(low < 0, at % step, low)
        last = length - 1 - (length - 1 - at) % step
        return low, torch.minimum(high, last + 1)


@dataclass(frozen=True)
class ImagePattern(GridPattern, abstract=True):
    """A pattern that is made for tokens of one size.

    Args:
        size: (length,), (height, width) or (frames, height, width); an int for a square image.
    """

    size: int | tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", sides(self.size))

    @property
    def sides(self) -> tuple[int, ...]:
        return self.size  # type: ignore[return-value]

    @property
    def height(self) -> int:
        """Rows of the image, or of a frame; a line has one."""
        return self.sides[-2] if len(self.sides) > 1 else 1

    @property
    def width(self) -> int:
        return self.sides[-1]


def tile_shape(block: Sequence[int], most: int) -> tuple[int, ...]:
    """The largest tile inside a block with at most `most` tokens, cut along the longest side."""
    sizes = list(block)
    while math.prod(sizes) > most:
        longest = sizes.index(max(sizes))
        sizes[longest] = -(-sizes[longest] // 2)
    return tuple(sizes)


def _strides(lengths: Sequence[int]) -> list[int]:
    """Tokens from one coordinate to the next on each axis."""
    return [math.prod(lengths[axis + 1 :]) for axis in range(len(lengths))]


def _unravel(idx: Tensor, lengths: Sequence[int]) -> tuple[Tensor, ...]:
    inner = []
    for length in lengths[:0:-1]:
        inner.append(idx % length)
        idx = idx // length
    return (idx, *inner[::-1])


def _box(first: Tensor, last: Tensor, lengths: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """(least, largest) coordinates on each axis of the tokens from `first` to `last`."""
    found, same = [], None
    ends = zip(_unravel(first, lengths), _unravel(last, lengths), strict=True)
    for (low, high), length in zip(ends, lengths, strict=True):
        if same is not None:  # where the axes outside differ, all of this one is passed
            found.append((low * same, torch.where(same, high, length - 1)))
            same = same & (low == high)
        else:
            found.append((low, high))
            same = low == high
    return found
