"""Hierarchical attention: near keys one by one, far keys as means of ever larger clusters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveal.patterns.base import Pattern
from foveal.patterns.pyramid_tiles import _PyramidTiles

NEIGHBORS = ("adjacent", "sibling")
QUERIES = ("coarse", "fine")


@dataclass(frozen=True)
class Pyramid(Pattern):
    """Every token reads all others (or all earlier ones), the farther away the more coarsely.

    Level l cuts the sequence into clusters of 2^l tokens and into blocks of `block_size` clusters.
    A pair meets at the lowest level at which its blocks are neighbours; there the key stands for
    the mean of its cluster, weighted by the number of real tokens in it. One softmax runs over all
    levels. Zhu & Soricut, "H-Transformer-1D" (2021).

    Args:
        block_size: clusters in a block; even for adjacent neighbours.
        causal: read the past only.
        neighbors: "adjacent" reads the blocks on either side at each level; "sibling" only the
            other half of the enclosing block, which is cheaper and coarser.
        queries: "coarse" lets the tokens of a cluster share a query at its level: their mean, or
            when causal the first of them; cost O(n * block). "fine" keeps a query for each token:
            O(n * block * levels), closer to exact attention. None: fine when causal.

    Raises:
        ValueError: block_size is not a positive int, or odd with adjacent neighbours; another
            word than those above.
    """

    block_size: int = 16
    causal: bool = False
    neighbors: str = "adjacent"
    queries: str | None = None

    always_reads = True
    pools = True
    biased_by_table = True

    def __post_init__(self) -> None:
        self._check_ints(1, "block_size")
        self._check_bools("causal")
        if self.neighbors not in NEIGHBORS:
            raise ValueError(f"neighbors must be one of {NEIGHBORS}, got {self.neighbors!r}.")
        if self.queries is None:
            object.__setattr__(self, "queries", "fine" if self.causal else "coarse")
        if self.queries not in QUERIES:
            raise ValueError(f"queries must be one of {QUERIES} or None, got {self.queries!r}.")
        if self.neighbors == "adjacent" and self.block_size % 2:
            raise ValueError(
                f"block_size must be even for adjacent neighbors, got {self.block_size}; use "
                f"{self.block_size + 1}, or neighbors='sibling'."
            )

    @property
    def bias_size(self) -> int:
        """Rows of a table of hierarchical relative positions: offsets in clusters."""
        return 4 * self.block_size - 1

    def bias_place(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        """Row of the table for pairs that broadcast: by the offset of the clusters that meet."""
        level = self.level(q_idx, k_idx)
        return self.joined(1, 1).bias_row(level, q_idx >> level, k_idx >> level)

    def allows(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        if self.causal:
            return k_idx <= q_idx
        return (q_idx == q_idx) & (k_idx == k_idx)

    def level(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        """Level at which each pair meets (elementwise, int64): 0 is full resolution."""
        q, k = torch.broadcast_tensors(q_idx // self.block_size, k_idx // self.block_size)
        level = torch.zeros(q.shape, dtype=torch.int64, device=q.device)
        far = self._far(q, k)
        while bool(far.any()):
            level = level + far
            q, k = q // 2, k // 2
            far = self._far(q, k)
        return level

    def _far(self, q_block: Tensor, k_block: Tensor) -> Tensor:
        if self.neighbors == "sibling":
            return q_block // 2 != k_block // 2
        return (q_block - k_block).abs() > 1

    def num_levels(self, length: int) -> int:
        """Levels that pairs of a sequence of `length` tokens meet at, level 0 included."""
        levels = 1
        while length > 2 * self.block_size << (levels - 1):
            levels += 1
        return levels

    def overlap(
        self, q_first: Tensor, q_last: Tensor, k_first: Tensor, k_last: Tensor
    ) -> tuple[Tensor, Tensor]:
        if self.causal:
            return k_first <= q_last, k_last <= q_first
        both = (q_first == q_first) & (k_first == k_first)
        return both, both

    def joined(self, n_queries: int, n_keys: int) -> _PyramidTiles:
        return _PyramidTiles(self, n_queries, n_keys)
