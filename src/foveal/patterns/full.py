"""Every token reads every token, or every earlier one."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from foveal.patterns.base import Band, Overlap, Pattern
from foveal.patterns.needs import Stretches
from foveal.patterns.tiling import MAX_TILE, Axis, Tiling, axes_groups


@dataclass(frozen=True)
class Full(Pattern):
    """Dense attention.

    Args:
        causal: read only the token itself and earlier ones.

    Raises:
        ValueError: causal is no bool.
    """

    causal: bool = False

    def __post_init__(self) -> None:
        self._check_bools("causal")

    always_reads = True

    def band(self) -> Band:
        return None, 0 if self.causal else None

    @property
    def period(self) -> int:
        return 1

    @property
    def reads_all(self) -> bool:  # type: ignore[override]
        return not self.causal

    def allows(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        return k_idx <= q_idx if self.causal else (q_idx == q_idx) & (k_idx == k_idx)

    def overlap(self, q_first: Tensor, q_last: Tensor, k_first: Tensor, k_last: Tensor) -> Overlap:
        if self.causal:
            return k_first <= q_last, k_last <= q_first
        every, _ = super().overlap(q_first, q_last, k_first, k_last)
        return every, every

    def _part(self, first: int, count: int, length: int) -> Tiling:
        last, part = (
            (lambda i: i + 1) if self.causal else (lambda i: length),
            (first, first + count),
        )
        axis = Axis(length, MAX_TILE, lambda i: (0, last(i)), anchored=self.causal, part=part)
        groups = tuple(axes_groups([axis], [1], self.allows, check=self.causal))
        return Tiling(count, length, groups).shift(-first, 0, count, length)

    def _span(self, first: int, count: int, length: int) -> tuple[int, int]:
        return 0, min(length, first + count) if self.causal else length

    def needs(self, first: int, last: int, length: int) -> Stretches:
        return (self._span(first, last - first, length),) if first < last else ()

    def num_pairs(self, length: int) -> int:
        return length * (length + 1) // 2 if self.causal else length * length
