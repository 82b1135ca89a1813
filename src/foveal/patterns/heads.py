"""One head of a pattern whose heads differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from foveal.patterns.base import Pattern


@dataclass(frozen=True)
class _OneHead(Pattern):
    """A head by its definition, where the pattern has no quicker form of it."""

    pattern: Pattern
    head: int

    @property
    def is_causal(self) -> bool:
        return self.pattern.is_causal

    @property
    def natural_length(self) -> int | None:
        return self.pattern.natural_length

    def check_length(self, length: int) -> None:
        self.pattern.check_length(length)

    def num_queries(self, n_keys: int) -> int:
        return self.pattern.num_queries(n_keys)

    def check_lengths(self, n_queries: int, n_keys: int) -> None:
        self.pattern.check_lengths(n_queries, n_keys)

    def allows(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        return self.pattern.allows(q_idx, k_idx)[self.head]

    def rule(self, device: torch.device | str | None = None) -> Callable[[Tensor, Tensor], Tensor]:
        rule, head = self.pattern.rule(device), self.head
        return lambda q_idx, k_idx: rule(q_idx, k_idx)[head]
