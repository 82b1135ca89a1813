"""The decoder of HTransformerSeq2Seq: attention over the target, then over the source."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from foveal.caches import DecodingState
from foveal.layers.checks import Device, head_size
from foveal.layers.feed_forward import FeedForward
from foveal.layers.hierarchical import HAttention1D, InterleavedRotary
from foveal.layers.hierarchical_cross import HCrossAttention1D
from foveal.models.htransformer.config import HTransformerConfig


class HDecoderBlock(nn.Module):
    """Three residual branches, each behind a norm.

    A block's decoding state holds a PyramidCache of the target and a PyramidMemory of the source.
    """

    def __init__(self, c: HTransformerConfig, rotary: InterleavedRotary) -> None:
        super().__init__()
        self.attn_norm = nn.LayerNorm(c.dim)
        self.attn = HAttention1D(
            c.dim,
            heads=c.heads,
            dim_head=c.dim_head,
            block_size=c.block_size,
            pos_emb=rotary,
            causal=True,
            neighbors=c.neighbors,
            relative_bias=c.relative_bias,
            dropout=c.dropout,
        )
        self.cross_norm = nn.LayerNorm(c.dim)
        self.cross = HCrossAttention1D(
            c.dim,
            heads=c.heads,
            dim_head=c.dim_head,
            block_size=c.block_size,
            neighbors=c.neighbors,
            pos_emb=rotary,
            relative_bias=c.relative_bias,
            dropout=c.dropout,
        )
        self.ff_norm = nn.LayerNorm(c.dim)
        self.ff = FeedForward(c.dim, c.ff_mult, c.activation, c.dropout)
        self.dropout = nn.Dropout(c.dropout)

    def forward(
        self,
        x: Tensor,
        source: Tensor,
        mask: Tensor | None = None,
        source_mask: Tensor | None = None,
    ) -> Tensor:
        """(batch, tokens, dim) -> same; source (batch, source tokens, dim); True = real."""
        x = x + self.dropout(self.attn(self.attn_norm(x), mask))
        return self._finish(x, self.cross(self.cross_norm(x), source, source_mask))

    def prefill(
        self, x: Tensor, source: Tensor, source_mask: Tensor | None, state: DecodingState
    ) -> Tensor:
        """The forward pass over the first tokens; the state's first part must be empty."""
        limit = state.parts[0].max_length
        state.parts[1] = self.cross.remember(source, source_mask, limit)
        y, state.parts[0] = self.attn.prefill(self.attn_norm(x), state.parts[0])
        x = x + self.dropout(y)
        return self._finish(x, self.cross(self.cross_norm(x), source, source_mask))

    def step(self, x: Tensor, state: DecodingState) -> Tensor:
        """One more token: x (batch, 1, dim) -> same."""
        position = state.parts[0].position
        y, state.parts[0] = self.attn.step(self.attn_norm(x), state.parts[0])
        x = x + self.dropout(y)
        return self._finish(x, self.cross.step(self.cross_norm(x), state.parts[1], position))

    def _finish(self, x: Tensor, read: Tensor) -> Tensor:
        x = x + self.dropout(read)
        return x + self.dropout(self.ff(self.ff_norm(x)))


class HDecoder(nn.Module):
    """`depth` decoder blocks and a final norm.

    Attributes:
        checkpointing: recompute each block in the backward pass.
    """

    def __init__(self, c: HTransformerConfig) -> None:
        super().__init__()
        rotary = InterleavedRotary(head_size(c.dim, c.heads, c.dim_head))
        self.layers = nn.ModuleList(HDecoderBlock(c, rotary) for _ in range(c.depth))
        self.norm = nn.LayerNorm(c.dim)
        self.checkpointing = False

    @property
    def blocks(self) -> list[HDecoderBlock]:
        return cast(list[HDecoderBlock], list(self.layers))

    def forward(
        self,
        x: Tensor,
        source: Tensor,
        mask: Tensor | None = None,
        source_mask: Tensor | None = None,
    ) -> Tensor:
        """(batch, tokens, dim) -> same; source (batch, source tokens, dim); True = real."""
        for block in self.blocks:
            if self.checkpointing and self.training:
                x = checkpoint(block, x, source, mask, source_mask, use_reentrant=False)
            else:
                x = block(x, source, mask, source_mask)
        return self.norm(x)

    def make_cache(self, batch: int, max_length: int, device: Device = None) -> DecodingState:
        """A decoding state without target and source."""
        parts = [block.attn.make_cache(batch, max_length, device) for block in self.blocks]
        return DecodingState([DecodingState([part, None]) for part in parts])

    def prefill(
        self, x: Tensor, source: Tensor, source_mask: Tensor | None, cache: DecodingState
    ) -> Tensor:
        """The forward pass over the first tokens, remembered in an empty cache."""
        for block, part in zip(self.blocks, cache.parts, strict=True):
            x = block.prefill(x, source, source_mask, part)
        cache.position += x.shape[1]
        return self.norm(x)

    def step(self, x: Tensor, cache: DecodingState) -> Tensor:
        """One more token: x (batch, 1, dim) -> same."""
        for block, part in zip(self.blocks, cache.parts, strict=True):
            x = block.step(x, part)
        cache.position += 1
        return self.norm(x)
