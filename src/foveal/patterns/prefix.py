"""Tokens in front that everybody reads."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from foveal.patterns.base import Overlap, Pattern
from foveal.patterns.tiling import MAX_TILE, Axis, Tiling, axes_groups


@dataclass(frozen=True)
class Prefix(Pattern):
    """Every token reads the first `num_tokens`, those of the prefix among themselves both ways.

    For unions. `Prefix(n) | Full(causal=True)` is the prefix language model (a prompt that is read
    both ways, then a text), `Prefix(n) | SlidingWindow(256)` a window with global tokens, and
    `Prefix(4, causal=True) | SlidingWindow(1024)` the window with attention sinks of StreamingLLM.

    Such a union is not causal, unless `causal` is given or the prefix is one token. It decodes all
    the same once the whole prefix is there, for no token reads a later one from then on; a cache
    holds the prefix for ever.

    Args:
        num_tokens: tokens in front.
        causal: tokens of the prefix read the past only.

    Raises:
        ValueError: num_tokens is no int or negative, or causal is no bool.

    Differs from Longformer in: tokens of the prefix are read by all, but read no more than the
    rest of the union lets them.
    """

    num_tokens: int
    causal: bool = False

    def __post_init__(self) -> None:
        self._check_ints(0, "num_tokens")
        self._check_bools("causal")

    @property
    def is_causal(self) -> bool:
        return self.causal or self.num_tokens < 2

    @property
    def decodes_from(self) -> int:
        return 0 if self.is_causal else self.num_tokens

    def allows(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        read = (k_idx < self.num_tokens) & (q_idx == q_idx)
        return read & (k_idx <= q_idx) if self.causal else read

    def overlap(self, q_first: Tensor, q_last: Tensor, k_first: Tensor, k_last: Tensor) -> Overlap:
        some, every = k_first < self.num_tokens, k_last < self.num_tokens
        if self.causal:
            return some & (k_first <= q_last), every & (k_last <= q_first)
        anywhere, _ = super().overlap(q_first, q_last, k_first, k_last)
        return some & anywhere, every & anywhere

    def _part(self, first: int, count: int, length: int) -> Tiling:
        def reach(i: int) -> tuple[int, int]:
            return 0, min(self.num_tokens, i + 1) if self.causal else self.num_tokens

        part = (first, first + count)
        axis = Axis(length, MAX_TILE, reach, anchored=self.causal, part=part)
        groups = tuple(axes_groups([axis], [1], self.allows, check=self.causal))
        return Tiling(count, length, groups).shift(-first, 0, count, length)

    def _span(self, first: int, count: int, length: int) -> tuple[int, int]:
        return 0, min(length, self.num_tokens)

    def horizon(self) -> tuple[int, int]:
        return self.num_tokens, 1

    def num_pairs(self, length: int) -> int:
        inside = min(self.num_tokens, length)
        later = (length - inside) * inside
        return later + (inside * (inside + 1) // 2 if self.causal else inside * inside)
