"""Hierarchical attention from one sequence to another."""

from __future__ import annotations

from torch import Tensor

from foveal.caches import PyramidMemory
from foveal.common.arguments import checked
from foveal.layers.checks import join_heads
from foveal.layers.cross_attention import CrossAttention
from foveal.layers.linear import project
from foveal.layers.positions import Positions, relative_table
from foveal.ops import TableBias, attend
from foveal.patterns import Pyramid


class HCrossAttention1D(CrossAttention):
    """Attention of a target over a source: source tokens near the same place one by one.

    Places of both sequences count from 0. Each query stays its own, so that none sees a later one.

    Args:
        dim: features of both sequences, and of the output.
        heads, dim_head: attention heads and the features of each.
        block_size, neighbors: see patterns.Pyramid.
        pos_emb: rotary positions on queries and keys; a Rotary to share its table.
        relative_bias: learn a table of hierarchical relative positions: True = one a head,
            "shared" = one for all heads.
        dropout: on the attention weights.

    Raises:
        ValueError: sizes or options that make no sense.

    Differs from the paper in: fine queries; means of clusters of a target would show its future.
    """

    @checked
    def __init__(
        self,
        dim: int,
        *,
        heads: int = 8,
        dim_head: int | None = 64,
        block_size: int = 16,
        neighbors: str = "adjacent",
        pos_emb: bool | Positions = False,
        relative_bias: bool | str = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(dim, heads, dim_head, pos_emb, dropout)
        self.pattern = Pyramid(block_size, False, neighbors, "fine")
        self.rel_bias = relative_table(self.pattern, relative_bias, heads)

    def extra_repr(self) -> str:
        return f"pattern={self.pattern}, heads={self.heads}"

    @property
    def _bias(self) -> TableBias | None:
        return None if self.rel_bias is None else TableBias(self.rel_bias)

    def forward(  # type: ignore[override]
        self, x: Tensor, context: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Attention of x (batch, queries, dim) over context (batch, keys, dim) -> as x.

        Args:
            mask: (batch, keys) bool, True = real; queries that read nothing get zeros.
        """
        k, v = self.keys(context)
        dropout = self.dropout if self.training else 0.0
        out = attend(
            self.queries(x), k, v, self.pattern, bias=self._bias, key_mask=mask, dropout_p=dropout
        )
        return project(self.to_out, join_heads(out))

    def remember(
        self, context: Tensor, mask: Tensor | None = None, max_queries: int | None = None
    ) -> PyramidMemory:
        """What `step` reads of a context: (batch, keys, dim), mask (batch, keys) True = real."""
        return PyramidMemory(self.pattern, *self.keys(context), mask, max_queries)

    def step(  # type: ignore[override]
        self, x: Tensor, memory: PyramidMemory, offset: int
    ) -> Tensor:
        """Attention of one token x (batch, 1, dim) at position `offset` -> same."""
        out = memory.attend(self.queries(x, offset), offset, bias=self._bias)
        return project(self.to_out, join_heads(out))
