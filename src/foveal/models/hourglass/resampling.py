"""From a fine sequence to a coarse one and back.

A group of k fine tokens becomes one coarse token. In a causal model the fine sequence is shifted
by k - 1 first: coarse token c pools the fine tokens c k - k + 1 ... c k, so that it is known when
fine token c k is, and every fine token i may read the coarse token i // k. It is the smallest
shift that leaks nothing (Nawrot et al., "Hierarchical Transformers Are More Efficient Language
Models", 2021, appendix A.2).

Shapes: B batch, N fine tokens, M coarse tokens, K tokens of a group, D features.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.caches import AttentionCache
from foveal.layers import CrossAttention, FeedForward, Rotary


class Groups(NamedTuple):
    """Fine tokens gathered into groups.

    x: (B, M, K, D), zeros where no real token stands.
    real: (B or 1, M, K) bool.
    """

    x: Tensor
    real: Tensor


def gather_groups(x: Tensor, mask: Tensor | None, factor: int, causal: bool) -> Groups:
    """Cut x (B, N, D) into M = ceil(N / K) groups; mask (B, N) True = real."""
    length = x.shape[1]
    num_groups = (length + factor - 1) // factor
    before = factor - 1 if causal else 0
    after = num_groups * factor - before - length  # negative: the last tokens are in no group yet
    if mask is None:
        place = torch.arange(num_groups * factor, device=x.device)[None] - before
        real = (place >= 0) & (place < length)
    else:
        x = x.masked_fill(~mask[..., None], 0.0)  # padding may hold anything, even NaN
        real = F.pad(mask, (before, after))
    x = F.pad(x, (0, 0, before, after))
    return Groups(x.unflatten(1, (-1, factor)), real.unflatten(1, (-1, factor)))


class NaiveShorten(nn.Module):
    """The mean of the real tokens of each group."""

    def forward(self, groups: Groups) -> Tensor:
        """-> (B, M, D); zeros for a group without real tokens."""
        count = groups.real.sum(2, keepdim=True).clamp(min=1)
        return groups.x.sum(2) / count.to(groups.x.dtype)


class LinearShorten(nn.Module):
    """A projection of the tokens of each group side by side; zeros stand for missing ones."""

    def __init__(self, dim: int, factor: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim * factor, dim)

    def forward(self, groups: Groups) -> Tensor:
        """-> (B, M, D)"""
        return self.proj(groups.x.flatten(2))

    def flops(self, num_groups: int) -> int:
        return 2 * num_groups * self.proj.weight.numel()


class NaiveUpsample(nn.Module):
    """Every coarse token once for each token of its group."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, D) -> (B, M K, D)"""
        return x.repeat_interleave(self.factor, dim=1)


class LinearUpsample(nn.Module):
    """A projection of every coarse token to the tokens of its group."""

    def __init__(self, dim: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.proj = nn.Linear(dim, dim * factor)

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, D) -> (B, M K, D)"""
        return self.proj(x).unflatten(2, (self.factor, -1)).flatten(1, 2)

    def flops(self, num_groups: int) -> int:
        return 2 * num_groups * self.proj.weight.numel()


class ResamplingAttention(nn.Module):
    """Attention between the fine and the coarse sequence, then a feed-forward.

    Queries x attend to the whole other sequence: x + attention(norm(x), context), then
    x + feed-forward(norm(x)). Positions are those of the fine sequence; coarse token c stands at
    c k.

    Args:
        dim, heads, dim_head, rotary, ff_mult, dropout: as in Block.
        factor: K.
        causal: coarse query c reads fine keys j <= c k; fine query i reads coarse keys <= i // k.
        shortening: whether the queries are the coarse tokens.
    """

    def __init__(
        self,
        dim: int,
        factor: int,
        causal: bool,
        shortening: bool,
        heads: int,
        dim_head: int,
        rotary: bool | Rotary,
        ff_mult: float,
        dropout: float,
    ) -> None:
        super().__init__()
        self.factor, self.causal, self.shortening = factor, causal, shortening
        self.context_norm = nn.LayerNorm(dim)
        self.attn_norm = nn.LayerNorm(dim)
        self.attn = CrossAttention(dim, heads, dim_head, rotary, dropout)
        self.ff_norm = nn.LayerNorm(dim)
        self.ff = FeedForward(dim, ff_mult, dropout=dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, queries, D), context (B, keys, D), mask (B, keys) True = real -> as x."""
        allowed = self._allowed(x.shape[1], context.shape[1], x.device) if self.causal else None
        if mask is not None:
            allowed = mask[:, None] if allowed is None else allowed & mask[:, None]
        strides = (self.factor, 1) if self.shortening else (1, self.factor)
        y = self.attn(self.attn_norm(x), self.context_norm(context), allowed, *strides)
        return self._add(x, y)

    def remember(self, context: Tensor, cache: AttentionCache) -> AttentionCache:
        """Add tokens (B, keys, D) to the cached context, after those it has seen."""
        stride = 1 if self.shortening else self.factor
        first = cache.position * stride
        return cache.prefill(*self.attn.keys(self.context_norm(context), first, stride))

    def step(self, x: Tensor, cache: AttentionCache, position: int) -> Tensor:
        """One query x (B, 1, D) at a fine position, over all that is remembered."""
        return self._add(x, self.attn.step(self.attn_norm(x), cache, position))

    def flops(self, num_fine: int, num_coarse: int) -> int:
        """Floating-point operations for sequences of these lengths."""
        sizes = (num_coarse, num_fine) if self.shortening else (num_fine, num_coarse)
        pairs = sizes[0] * sizes[1]
        if self.causal:
            pairs = sum(self._num_read(i, sizes[1]) for i in range(sizes[0]))
        return self.attn.flops(*sizes, pairs) + self.ff.flops(sizes[0])

    def _num_read(self, query: int, num_keys: int) -> int:
        last = query * self.factor if self.shortening else query // self.factor
        return min(last + 1, num_keys)

    def _allowed(self, num_queries: int, num_keys: int, device: torch.device) -> Tensor:
        query = torch.arange(num_queries, device=device)[:, None]
        key = torch.arange(num_keys, device=device)[None, :]
        last = query * self.factor if self.shortening else query // self.factor
        return (key <= last)[None]

    def _add(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.dropout(attended)
        return x + self.dropout(self.ff(self.ff_norm(x)))
