"""Strided attention of the Sparse Transformer: a window, and every token in step with it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from foveal.patterns.base import Overlap, Pattern
from foveal.patterns.needs import Stretches
from foveal.patterns.tiling import (
    MAX_TILE,
    Grid,
    Places,
    TileGroup,
    Tiling,
    consecutive,
    listed_groups,
)


@dataclass(frozen=True)
class Strided(Pattern):
    """Each token reads the last `stride` tokens and every token a multiple of `stride` away.

    Child et al., "Generating Long Sequences with Sparse Transformers" (2019), section 4.3; both
    sets in one head. Useful with a stride near the square root of the length, above all where the
    data has a period of `stride` tokens (the rows of an image).

    Args:
        stride: distance between the tokens read far away, and size of the window.
        causal: read the past only; otherwise both sets are mirrored to the future.

    Raises:
        ValueError: stride is not a positive int.

    Differs from the paper in: the window holds `stride` tokens, the token itself included, as in
    the authors' code; the paper's formula has one more, which the far set contains anyway.

    Cost: a query reads about `stride + i / stride` keys, but the queries of a tile share only part
    of them. Tiles are rectangles in the grid of rows of `stride` tokens, and visit about
    `sqrt(MAX_TILE)` times the allowed pairs; that beats dense attention from a few thousand
    tokens on. Two layers, SlidingWindow and a column of an image (Axial), have no such loss.
    """

    stride: int
    causal: bool = True

    always_reads = True

    @property
    def period(self) -> int:
        return 1

    def __post_init__(self) -> None:
        self._check_ints(1, "stride")
        self._check_bools("causal")

    def allows(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        distance = q_idx - k_idx
        reach = (distance.abs() < self.stride) | (distance % self.stride == 0)
        return reach & (distance >= 0) if self.causal else reach

    def overlap(self, q_first: Tensor, q_last: Tensor, k_first: Tensor, k_last: Tensor) -> Overlap:
        nearest, farthest = q_first - k_last, q_last - k_first
        low = nearest.clamp(min=0) if self.causal else nearest
        # the window is the stretch around 0; a far key needs a multiple of the stride between
        near = (farthest > -self.stride) & (low < self.stride)
        far = farthest // self.stride * self.stride >= low
        some = (near | far) & (farthest >= low)
        every = (nearest > -self.stride) & (farthest < self.stride)
        every = every | (some & (self.stride == 1))
        return some, every & (nearest >= 0) if self.causal else every

    def needs(self, first: int, last: int, length: int) -> Stretches:
        if last - first < self.stride:
            return super().needs(first, last, length)
        return ((0, last if self.causal else length),)

    def reads(self, position: int) -> Tensor:
        self._require_causal("reads")
        near = torch.arange(max(0, position - self.stride + 1), position + 1, device="cpu")
        far = (
            torch.arange(position // self.stride, device="cpu") * self.stride
            + position % self.stride
        )
        return torch.cat([far, near])

    def num_pairs(self, length: int) -> int:
        rows, rest = divmod(length, self.stride)
        inside = min(self.stride, length)
        window = inside * length - inside * (inside - 1) // 2
        far = self.stride * (rows * (rows - 1) // 2) + rows * rest  # sum of i // stride
        past = window + far
        return past if self.causal else 2 * past - length

    # -- plan: row = position // stride, column = position % stride ------------------------------

    def _tiles(self, length: int) -> Tiling:
        rows, rest = divmod(length, self.stride)
        groups: list[TileGroup] = []
        edges: list[Tensor] = []  # queries whose window leaves the sequence
        for first, last, num_rows in ((0, rest, rows + 1), (rest, self.stride, rows)):
            if first == last or not num_rows:
                continue
            end = num_rows if self.causal else num_rows - 1
            groups += self._boxes(first, last, num_rows, range(1, end))
            for row in {0} if self.causal else {0, num_rows - 1}:
                edges += consecutive(row * self.stride + last, row * self.stride + first)
        groups += listed_groups(self.allows, edges, lambda q: self._edge_keys(q, length))
        return Tiling(length, length, tuple(groups))

    def _edge_keys(self, queries: Tensor, length: int) -> Tensor:
        first, last = int(queries[0]), int(queries[-1])
        stop = last + 1 if self.causal else length
        near = torch.arange(
            max(0, first - self.stride), min(stop, last + self.stride + 1), device="cpu"
        )
        far = queries[:, None] % self.stride + torch.arange(0, stop, self.stride, device="cpu")
        keys = torch.cat([near, far.reshape(-1)]).unique()
        return keys[keys < stop]

    def _boxes(self, first: int, last: int, num_rows: int, rows: range) -> Iterator[TileGroup]:
        """Tiles for columns [first, last) of the given rows; `num_rows` hold these columns."""
        width = self._box_width(num_rows, last - first)
        height = MAX_TILE // width
        whole, rest = divmod(last - first, width)
        for columns, start, count in ((width, first, whole), (rest, last - rest, 1)):
            if not columns or not count:
                continue
            masks: dict[int, Tensor] = {}
            for top in range(rows.start, rows.stop, height):
                tall = min(height, rows.stop - top)
                if tall not in masks:
                    masks[tall] = self._box_mask(tall, columns, num_rows)
                yield self._box(top, tall, start, columns, count, num_rows, masks[tall])

    def _box_width(self, num_rows: int, columns: int) -> int:
        """Columns of a box: each row costs `stride` keys, each column the rows it reaches."""
        reached = num_rows / 2 if self.causal else num_rows
        best = math.sqrt(MAX_TILE * self.stride / max(reached, 1))
        best = max(best, MAX_TILE / max(num_rows - 1, 1))
        power = 1 << max(0, min(MAX_TILE.bit_length() - 1, round(math.log2(best))))
        return min(power, 1 << (columns.bit_length() - 1))

    def _box(
        self, top: int, tall: int, start: int, wide: int, count: int, num_rows: int, mask: Tensor
    ) -> TileGroup:
        stride = self.stride
        across = ((count, wide), (1, 0), (1, 0))

        def rows(first: int, height: int) -> Grid:
            return Grid(first * stride + start, across, ((1, 0), (height, stride), (wide, 1)))

        near_rows = tall if self.causal else tall + 1
        near = Grid(
            (top - 1) * stride + start, ((count, wide),), ((near_rows * stride + wide, 1),)
        )
        keys: list[Places] = [near]
        above = top - 1
        below = 0 if self.causal else max(0, num_rows - (top + tall + 1))
        keys += [rows(row, n) for row, n in ((0, above), (top + tall + 1, below)) if n]
        used = near.num_items + (above + below) * wide
        return TileGroup(rows(top, tall), tuple(keys), mask[:, :, :used])

    def _box_mask(self, tall: int, wide: int, num_rows: int) -> Tensor:
        """Near keys first, then as many far rows as any box needs: all boxes take a slice."""
        column = torch.arange(wide, device="cpu")
        queries = (
            torch.arange(1, tall + 1, device="cpu")[:, None] * self.stride + column
        ).reshape(-1)
        near_rows = tall if self.causal else tall + 1
        near = self.allows(
            queries[:, None], torch.arange(near_rows * self.stride + wide, device="cpu")
        )
        far = torch.eye(wide, dtype=torch.bool, device="cpu").repeat(tall, num_rows)
        return torch.cat([near, far], dim=1)[None]
