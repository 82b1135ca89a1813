"""Chunked attention: the sequence is cut into blocks that do not look at each other."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from foveal.patterns.base import Overlap, Pattern
from foveal.patterns.tiling import MAX_TILE, Axis, Tiling, axes_groups


@dataclass(frozen=True)
class Blocks(Pattern):
    """Each token reads its own block and `lookback` blocks before it.

    Args:
        block_size: tokens in a block; the last block may be shorter.
        causal: inside that reach, read the past only.
        lookback: earlier blocks that are read too.

    Raises:
        ValueError: block_size is not a positive int or lookback is negative.
    """

    block_size: int
    causal: bool = False
    lookback: int = 0

    def __post_init__(self) -> None:
        self._check_ints(1, "block_size")
        self._check_ints(0, "lookback")
        self._check_bools("causal")

    always_reads = True

    def allows(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        back = q_idx // self.block_size - k_idx // self.block_size
        near = (back >= 0) & (back <= self.lookback)
        return near & (k_idx <= q_idx) if self.causal else near

    def overlap(self, q_first: Tensor, q_last: Tensor, k_first: Tensor, k_last: Tensor) -> Overlap:
        size = self.block_size
        nearest = q_first // size - k_last // size
        farthest = q_last // size - k_first // size
        some = (farthest >= 0) & (nearest <= self.lookback)
        every = (nearest >= 0) & (farthest <= self.lookback)
        if self.causal:
            return some & (k_first <= q_last), every & (k_last <= q_first)
        return some, every

    def _reach(self, i: int) -> tuple[int, int]:
        start = i // self.block_size * self.block_size
        stop = i + 1 if self.causal else start + self.block_size
        return start - self.lookback * self.block_size, stop

    @property
    def period(self) -> int:
        return self.block_size

    def _part(self, first: int, count: int, length: int) -> Tiling:
        size, part = self.block_size, (first, first + count)
        axis = Axis(length, min(MAX_TILE, size), self._reach, 1, size, part=part)
        groups = tuple(axes_groups([axis], [1], self.allows))
        return Tiling(count, length, groups).shift(-first, 0, count, length)

    def _span(self, first: int, count: int, length: int) -> tuple[int, int]:
        low, high = self._reach(first)[0], self._reach(first + max(0, count - 1))[1]
        return max(0, low), min(length, high)

    def horizon(self) -> tuple[int, int] | None:
        return (0, (self.lookback + 1) * self.block_size) if self.causal else None

    def keeps(self, position: int) -> range:
        self._require_causal("keeps")
        following = (position + 1) // self.block_size * self.block_size
        return range(max(0, following - self.lookback * self.block_size), position + 1)

    def num_pairs(self, length: int) -> int:
        size, (whole, rest) = self.block_size, divmod(length, self.block_size)
        own = (lambda n: n * (n + 1) // 2) if self.causal else (lambda n: n * n)
        earlier = sum(
            size * min(self.lookback, block) * (size if block < whole else rest)
            for block in range(whole + bool(rest))
        )
        return whole * own(size) + own(rest) + earlier
