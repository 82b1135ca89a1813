"""Dense attention from one sequence to another."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from foveal.caches import AttentionCache
from foveal.layers.checks import (
    Device,
    check_dropout,
    head_size,
    join_heads,
    split_heads,
    state_dtype,
)
from foveal.layers.linear import Linear
from foveal.layers.rotary import Rotary
from foveal.patterns import Full


class CrossAttention(nn.Module):
    """Multi-head attention of queries over the tokens of another sequence.

    For sequences of different lengths, whose mask the caller knows: the resampling of Hourglass.

    Args:
        dim: features of both sequences, and of the output.
        heads, dim_head: as in SelfAttention.
        rotary: rotary positions on queries and keys; a Rotary to share its table.
        dropout: on the attention weights.

    Raises:
        ValueError: sizes that do not divide.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        dim_head: int | None = 64,
        rotary: bool | Rotary = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dim_head = head_size(dim, heads, dim_head)
        self.heads = heads
        check_dropout(dropout)
        self.rotary = Rotary(self.dim_head) if rotary is True else rotary or None
        self.dropout = dropout
        self.to_q = Linear(dim, heads * self.dim_head, bias=False)
        self.to_kv = Linear(dim, 2 * heads * self.dim_head, bias=False)
        self.to_out = Linear(heads * self.dim_head, dim)

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        mask: Tensor | None = None,
        x_stride: int = 1,
        context_stride: int = 1,
    ) -> Tensor:
        """Attention of x (batch, queries, dim) over context (batch, keys, dim) -> as x.

        Args:
            mask: (batch or 1, queries or 1, keys) bool, True = attend; queries that read nothing
                get zeros.
            x_stride, context_stride: step from one token to the next, in common positions.
        """
        q = self.queries(x, 0, x_stride)
        k, v = self.keys(context, 0, context_stride)
        dropout = self.dropout if self.training else 0.0
        if mask is None:
            out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
            return self.to_out(join_heads(out))
        mask = mask[:, None]
        alive = mask.any(-1, keepdim=True)
        # a row without keys reads all of them, and what it got is thrown away
        some = mask | ~alive
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=some, dropout_p=dropout)
        return self.to_out(join_heads(out.masked_fill(~alive, 0.0)))

    def queries(self, x: Tensor, offset: int = 0, stride: int = 1) -> Tensor:
        """(batch, tokens, dim) -> (batch, heads, tokens, dim_head)."""
        return self._turn(self.to_q(x), offset, stride)

    def keys(self, context: Tensor, offset: int = 0, stride: int = 1) -> tuple[Tensor, Tensor]:
        """(batch, tokens, dim) -> keys and values (batch, heads, tokens, dim_head)."""
        k, v = self.to_kv(context).chunk(2, dim=-1)
        return self._turn(k, offset, stride), split_heads(v, self.dim_head)

    def make_cache(
        self, batch: int, max_length: int | None = None, device: Device = None
    ) -> AttentionCache:
        """An empty state for the context's keys; it forgets nothing."""
        dtype, device = state_dtype(self.to_kv), device or self.to_kv.weight.device
        return AttentionCache(
            Full(causal=True),
            batch,
            self.heads,
            self.dim_head,
            max_length,
            dtype=dtype,
            device=device,
        )

    def step(self, x: Tensor, cache: AttentionCache, offset: int) -> Tensor:
        """Attention of one token x (batch, 1, dim) at position `offset` over all cached keys."""
        return self.to_out(join_heads(cache.attend(self.queries(x, offset))))

    def flops(self, num_queries: int, num_keys: int, num_pairs: int) -> int:
        """Floating-point operations of a forward pass that attends to `num_pairs` pairs."""
        projections = num_queries * (self.to_q.weight.numel() + self.to_out.weight.numel())
        projections += num_keys * self.to_kv.weight.numel()
        return 2 * projections + 4 * self.heads * self.dim_head * num_pairs

    def _turn(self, x: Tensor, offset: int, stride: int) -> Tensor:
        x = x.unflatten(-1, (self.heads, self.dim_head))
        if self.rotary is not None:
            x = self.rotary(x, offset, stride)
        return x.transpose(1, 2)
