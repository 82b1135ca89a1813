"""Offsets of pairs of tokens, and a number for each that is a difference of two numbers.

What a pair gains by its offset needs no table of pairs: each token gets a code, such that the
difference of a query's and a key's tells their offset on every axis. A tile then reads a short
vector at differences, which for consecutive queries are consecutive.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Codes(NamedTuple):
    """The row of a table for the pair (q, k) is rows[query[q] - key[k]].

    query: (n_queries,) int64; key: (n_keys,) int64; rows: (differences,) int64.
    """

    query: Tensor
    key: Tensor
    rows: Tensor


Coordinates = tuple[Tensor, ...]
"""Where tokens stand: one tensor an axis, of one shape."""


def grid_size(reach: Sequence[int], step: Sequence[int]) -> int:
    """Offsets of -reach ... reach in steps, on all axes together."""
    total = 1
    for axis, most in enumerate(reach):  # plainly, for the compiler follows
        total = total * (2 * (most // step[axis]) + 1)
    return total


def grid_place(offsets: Sequence[Tensor], reach: Sequence[int], step: Sequence[int]) -> Tensor:
    """Number of an offset in row-major order; what reaches farther counts as the farthest.

    offsets: query minus key on each axis, tensors of the same shape, which the result has.
    """
    place = torch.zeros((), dtype=torch.int64, device=offsets[0].device)
    for offset, r, s in zip(offsets, reach, step, strict=True):
        most = r // s
        own = torch.div(offset, s, rounding_mode="floor") if s > 1 else offset
        place = place * (2 * most + 1) + own.clamp(-most, most) + most
    return place


def grid_codes(
    queries: Coordinates, keys: Coordinates, row_of: Callable[[list[Tensor]], Tensor]
) -> Codes:
    """Codes of tokens on axes.

    queries, keys: coordinates (n_queries,) and (n_keys,).
    row_of: offsets on all axes, of one shape -> rows of a table.
    """
    n, m = len(queries[0]), len(keys[0])
    query, key = (torch.zeros(size, dtype=torch.int64, device="cpu") for size in (n, m))
    spans = []
    for q, k in zip(queries, keys, strict=True):
        both = torch.cat([q, k])
        span = int(both.max() - both.min()) if len(both) else 0
        query, key = query * (2 * span + 1) + q, key * (2 * span + 1) + k
        spans.append(span)
    size = math.prod(2 * span + 1 for span in spans)
    rest = torch.arange(size, device="cpu")
    offsets = []
    for span in reversed(spans):  # digits that run from -span to span
        offsets.append(rest % (2 * span + 1) - span)
        rest = torch.div(rest, 2 * span + 1, rounding_mode="floor")
    return Codes(query + size // 2, key, row_of(offsets[::-1]))


class Placed:
    """Where the tokens of a pattern stand: of every pattern, whose base this is.

    A pattern whose tokens lie on axes gives `grid`, `coordinates` and `offset_reach`, and a
    TableBias for it has a row for each offset; any other is a sequence, where a table may be as
    long as its maker likes.
    """

    @property
    def grid(self) -> tuple[int, ...] | None:
        """Coordinates on each axis that the tokens lie on, or None for a sequence."""
        return None

    @property
    def offset_reach(self) -> tuple[int, ...] | None:
        """Largest distance of a key from its query on each axis of the grid."""
        grid = self.grid
        return None if grid is None else tuple([size - 1 for size in grid])

    @property
    def offset_step(self) -> tuple[int, ...]:
        """Step between the offsets on each axis: what all of them are multiples of."""
        return (1,) * len(self.offset_reach or (0,))

    def coordinates(self, idx: Tensor) -> Coordinates:
        """Positions of keys, of any shape -> their coordinate on each axis, of that shape."""
        return (idx,)

    def query_coordinates(self, q_idx: Tensor) -> Coordinates:
        """Positions of queries, of any shape -> their coordinates among the keys."""
        return self.coordinates(q_idx)

    def tokens(self, q_idx: Tensor, k_idx: Tensor) -> tuple[Tensor, Tensor]:
        """Positions of any shape -> those in the sequence, where distances are counted."""
        return q_idx, k_idx

    def farthest(self, n_queries: int, n_keys: int, first: int = 0, skipped: int = 0) -> int:
        """More than any distance in tokens of queries from `first` on, and keys from `skipped`."""
        return max(n_queries + first - skipped, n_keys + skipped - first, 1)

    @property
    def bias_size(self) -> int | None:
        """Rows of a table of biases, or None where a table may have any number."""
        return self._rows_of_grid()

    def _rows_of_grid(self) -> int | None:
        # apart, for the compiler does not follow super() to a property
        reach = self.offset_reach
        return None if reach is None else grid_size(reach, self.offset_step)

    def bias_place(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        """Row of a table of biases for each pair of positions, which broadcast.

        On a grid, that of the offset query - key, in row-major order of the offsets of all axes.
        """
        axes = zip(self.query_coordinates(q_idx), self.coordinates(k_idx), strict=True)
        return self._row_of([q - k for q, k in axes])

    @property
    def has_offset_codes(self) -> bool:
        """Whether `offset_codes` are those of `bias_place`, and not of a base with another."""
        place, codes = (_owner(self, name) for name in ("bias_place", "offset_codes"))
        return self.offset_reach is not None and place >= codes

    def offset_codes(self, n_queries: int, n_keys: int) -> Codes:
        """Numbers of the tokens whose differences tell `bias_place`; if `has_offset_codes`."""
        queries, keys = (torch.arange(n, device="cpu") for n in (n_queries, n_keys))
        return grid_codes(self.query_coordinates(queries), self.coordinates(keys), self._row_of)

    def _row_of(self, offsets: Sequence[Tensor]) -> Tensor:
        if self.offset_reach is None:
            raise NotImplementedError(f"{type(self).__name__} has no table of biases of its own.")
        return grid_place(offsets, self.offset_reach, self.offset_step)


def _owner(value: object, name: str) -> int:
    """Which of the classes of an object, from its own on, defines a method."""
    return next(i for i, cls in enumerate(type(value).__mro__) if name in vars(cls))
