"""Attention between the fine and the coarse sequence, in addition to plain resampling.

Shapes: B batch, N fine tokens, M coarse tokens, K tokens of a group, D features.
"""

from __future__ import annotations

from torch import Tensor, nn

from foveal.caches import AttentionCache
from foveal.layers import CrossAttention, FeedForward, Relative, Rotary
from foveal.layers.dropout import Dropout
from foveal.layers.packing import Context
from foveal.patterns import Full, Shorten


class ResamplingAttention(nn.Module):
    """Queries from plain resampling attend to the whole other sequence; then a feed-forward.

    In a causal model coarse query c reads the fine keys up to c k, and fine query i the coarse
    keys up to i // k. Positions are those of the fine sequence; coarse token c stands at c k.

    As the authors have it, with h = norm(context): q = norm(resampled h), to which upsampling adds
    the fine tokens x; then q + attention(q, h), then + feed-forward(norm(.)). With pre_norm it is
    an ordinary block: the context is resampled as it is, and the sum is normalised.

    Args:
        dim, heads, dim_head, ff_mult, dropout: as in Block.
        factor: K.
        causal: as above; else every query reads every key.
        shortening: whether the queries are the coarse tokens.
        rotary: as in CrossAttention.
        pre_norm: see above.
        norm_context: False leaves the context as it is.
    """

    def __init__(
        self,
        dim: int,
        factor: int,
        causal: bool,
        shortening: bool,
        heads: int,
        dim_head: int,
        rotary: bool | Rotary | Relative,
        ff_mult: float,
        dropout: float,
        pre_norm: bool = False,
        norm_context: bool = True,
    ) -> None:
        super().__init__()
        self.factor, self.causal, self.shortening = factor, causal, shortening
        self.pre_norm = pre_norm
        self.context_norm = nn.LayerNorm(dim) if norm_context else nn.Identity()
        self.attn_norm = nn.LayerNorm(dim)
        self.attn = CrossAttention(dim, heads, dim_head, rotary, dropout)
        self.ff_norm = nn.LayerNorm(dim)
        self.ff = FeedForward(dim, ff_mult, dropout=dropout)
        self.dropout = Dropout(dropout)

    def extra_repr(self) -> str:
        return f"shortening={self.shortening}, pre_norm={self.pre_norm}"

    def source(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """A sequence (B, tokens, D) -> what is resampled of it, and what keys are made of."""
        context = self.context_norm(x)
        return (x if self.pre_norm else context), context

    def forward(
        self,
        resampled: Tensor | None,
        x: Tensor | None,
        context: Tensor,
        mask: Tensor | Context | None = None,
        place: Context | None = None,
    ) -> Tensor:
        """Queries from what was resampled and the fine tokens x, each (B, queries, D) or None.

        Args:
            context: (B, keys, D), from `source`.
            mask: (B, keys) True = real.
            place: where the queries are, of a part of a sequence; mask says where the keys are.

        Returns:
            (B, queries, D)
        """
        if place is None:
            return self._resample(resampled, x, context, mask, place)
        with place.drawing():
            return self._resample(resampled, x, context, mask, place)

    def _resample(
        self,
        resampled: Tensor | None,
        x: Tensor | None,
        context: Tensor,
        mask: Tensor | Context | None,
        place: Context | None,
    ) -> Tensor:
        strides = (self.factor, 1) if self.shortening else (1, self.factor)
        base, q = self._queries(resampled, x)
        group = 1
        if not self.causal:
            y = self.attn(q, context, Full(), mask, *strides, group, place)
        elif self.shortening:
            y = self.attn(q, context, Shorten(self.factor), mask, *strides, group, place)
        else:
            group = self.factor
            y = self.attn(q, context, Full(causal=True), mask, *strides, group, place)
        return self._add(base, y)

    def remember(self, context: Tensor, cache: AttentionCache) -> AttentionCache:
        """Add tokens (B, keys, D), from `source`, to the cached keys."""
        stride = 1 if self.shortening else self.factor
        return cache.prefill(*self.attn.keys(context, cache.position * stride, stride))

    def step(
        self, resampled: Tensor | None, x: Tensor | None, cache: AttentionCache, position: int
    ) -> Tensor:
        """One query (B, 1, D) at a fine position, over all that is remembered."""
        base, q = self._queries(resampled, x)
        stride = 1 if self.shortening else self.factor
        return self._add(base, self.attn.step(q, cache, position, stride))

    def extend(
        self, resampled: Tensor | None, x: Tensor | None, cache: AttentionCache, position: int
    ) -> Tensor:
        """The latest queries (B, queries, D), from a fine position on, over all remembered."""
        base, q = self._queries(resampled, x)
        if self.shortening:
            y = self.attn.extend(q, cache, Shorten(self.factor), position, self.factor)
        else:
            strides = (1, self.factor, self.factor)
            y = self.attn.extend(q, cache, Full(causal=True), position, *strides)
        return self._add(base, y)

    def _queries(self, resampled: Tensor | None, x: Tensor | None) -> tuple[Tensor, Tensor]:
        """What attention is added to, and what asks: (B, queries, D) each."""
        parts = [part for part in (resampled, x) if part is not None]
        if self.pre_norm or resampled is None:
            total = sum(parts[1:], parts[0])
            normed = self.attn_norm(total)
            return (total, normed) if self.pre_norm else (normed, normed)
        q = self.attn_norm(resampled)
        q = q if x is None else q + x
        return q, q

    def _add(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.dropout(attended)
        return x + self.dropout(self.ff(self.ff_norm(x)))
