"""Few coarse queries over many fine keys: the shortening of Hourglass."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from foveal.patterns.base import Overlap, Pattern
from foveal.patterns.tiling import MAX_TILE, Axis, Tiling, axes_groups


@dataclass(frozen=True)
class Shorten(Pattern):
    """Query c stands at key c * factor and reads the keys up to it.

    A group of `factor` keys has one query, which belongs to the last key of its group once the
    keys are shifted by factor - 1: Nawrot et al., "Hierarchical Transformers Are More Efficient
    Language Models" (2021).

    Args:
        factor: keys for each query.

    Raises:
        ValueError: factor is not a positive int.
    """

    factor: int

    always_reads = True

    def __post_init__(self) -> None:
        self._check_ints(1, "factor")

    def num_queries(self, n_keys: int) -> int:
        return -(-n_keys // self.factor)

    def allows(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        return k_idx <= q_idx * self.factor

    def overlap(self, q_first: Tensor, q_last: Tensor, k_first: Tensor, k_last: Tensor) -> Overlap:
        return k_first <= q_last * self.factor, k_last <= q_first * self.factor

    def _part(self, first: int, count: int, length: int) -> Tiling:
        factor, part = self.factor, (first, first + count)
        axis = Axis(length, MAX_TILE, lambda i: (0, i * factor + 1), scale=factor, part=part)
        groups = tuple(axes_groups([axis], [1], self.allows, query_strides=[1]))
        return Tiling(count, length, groups).shift(-first, 0, count, length)

    def num_pairs(self, length: int) -> int:
        queries = self.num_queries(length)
        return queries + self.factor * (queries * (queries - 1) // 2)
