"""Sliding-window attention along a sequence."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from foveal.patterns.base import Band, Overlap, Pattern
from foveal.patterns.needs import Stretches
from foveal.patterns.tiling import MAX_TILE, Axis, Tiling, axes_groups


@dataclass(frozen=True)
class SlidingWindow(Pattern):
    """Each token reads the tokens at a distance below `window`.

    Args:
        window: tokens read on one side, the token itself included: `0 <= i - j < window` when
            causal, `|i - j| < window` otherwise.
        causal: read the past only.

    Raises:
        ValueError: window is not a positive int.
    """

    window: int
    causal: bool = True

    def __post_init__(self) -> None:
        self._check_ints(1, "window")
        self._check_bools("causal")

    always_reads = True

    def band(self) -> Band:
        return self.window - 1, 0 if self.causal else self.window - 1

    @property
    def period(self) -> int:
        return 1

    def allows(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        distance = q_idx - k_idx
        low = distance >= 0 if self.causal else distance > -self.window
        return low & (distance < self.window)

    def overlap(self, q_first: Tensor, q_last: Tensor, k_first: Tensor, k_last: Tensor) -> Overlap:
        nearest, farthest = q_first - k_last, q_last - k_first
        least = 0 if self.causal else 1 - self.window
        some = (farthest >= least) & (nearest < self.window)
        return some, (nearest >= least) & (farthest < self.window)

    def _part(self, first: int, count: int, length: int) -> Tiling:
        after, stop = 1 if self.causal else self.window, first + count
        axis = Axis(
            length, MAX_TILE, lambda i: (i - self.window + 1, i + after), part=(first, stop)
        )
        groups = tuple(axes_groups([axis], [1], self.allows))
        return Tiling(count, length, groups).shift(-first, 0, count, length)

    def _span(self, first: int, count: int, length: int) -> tuple[int, int]:
        high = first + count if self.causal else first + count + self.window - 1
        return max(0, first - self.window + 1), min(length, high)

    def needs(self, first: int, last: int, length: int) -> Stretches:
        return (self._span(first, last - first, length),) if first < last else ()

    def horizon(self) -> tuple[int, int] | None:
        return (0, self.window) if self.causal else None

    def num_pairs(self, length: int) -> int:
        inside = min(self.window, length)
        past = inside * length - inside * (inside - 1) // 2
        return past if self.causal else 2 * past - length
