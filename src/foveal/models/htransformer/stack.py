"""Layers of H-Transformer-1D one after the other, plain or reversible, with decoding."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from foveal.caches import DecodingState
from foveal.common.lazy import provided
from foveal.layers.attention import SelfAttention
from foveal.layers.checks import Device, head_size
from foveal.layers.feed_forward import FeedForward
from foveal.layers.hierarchical import HAttention1D, InterleavedRotary, shift_tokens
from foveal.layers.reversible import Half, reversible
from foveal.models.htransformer.config import HTransformerConfig


class HBlock(nn.Module):
    """Two residual branches: attention and feed-forward, each behind a norm and a shift."""

    def __init__(self, c: HTransformerConfig, rotary: InterleavedRotary | None) -> None:
        super().__init__()
        self.shifts = c.shifts
        self.masks_ff = c.compat is None  # the package sends the mask to attention only
        self.attn_norm = nn.LayerNorm(c.dim)
        self.attn = _attention(c, rotary)
        self.ff_norm = nn.LayerNorm(c.dim)
        self.ff = FeedForward(c.dim, c.ff_mult, c.activation, c.dropout)
        self.dropout = nn.Dropout(c.dropout)

    def attend(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The first branch: (batch, tokens, dim) -> same."""
        return self.dropout(self.attn(self._shifted(self.attn_norm(x), mask), mask))

    def feed(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The second branch."""
        return self.dropout(
            self.ff(self._shifted(self.ff_norm(x), mask if self.masks_ff else None))
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(batch, tokens, dim) -> same; mask (batch, tokens) True = real."""
        x = x + self.attend(x, mask)
        return x + self.feed(x, mask)

    def halves(self, mask: Tensor | None) -> tuple[Half, Half]:
        """Both branches for a reversible run."""
        attn = (*self.attn_norm.parameters(), *self.attn.parameters())
        ff = (*self.ff_norm.parameters(), *self.ff.parameters())
        return (
            Half(lambda x: self.attend(x, mask), attn),
            Half(lambda x: self.feed(x, mask), ff),
        )

    def _shifted(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return x if self.shifts is None else shift_tokens(x, self.shifts, mask)

    # -- decoding: both streams of a reversible stack, or one that is both -------------------

    def make_cache(self, batch: int, max_length: int | None, device: Device) -> DecodingState:
        attn = cast(SelfAttention, self.attn)
        return DecodingState([attn.make_cache(batch, max_length, device)])

    def decode(self, x: Tensor, cache: DecodingState, branch: str) -> Tensor:
        """A branch over the first tokens, or over one more: x (batch, tokens, dim) -> same."""
        norm = self.attn_norm if branch == "attn" else self.ff_norm
        x = self._recall(norm(x), cache, branch)
        if branch == "ff":
            return self.dropout(self.ff(x))
        attn = cast(SelfAttention, self.attn)
        run = attn.step if cache.parts[0].position else attn.prefill
        out, cache.parts[0] = run(x, cache.parts[0])
        return self.dropout(out)

    def _recall(self, x: Tensor, cache: DecodingState, branch: str) -> Tensor:
        """Shift, with the tokens that came before x; remembers those the next ones need."""
        if self.shifts is None:
            return x
        before = cache.tensors.get(branch)
        longer = x if before is None else torch.cat((before, x), 1)
        back = max(self.shifts)
        cache.tensors[branch] = longer[:, max(0, longer.shape[1] - back) :].clone()
        return shift_tokens(longer, self.shifts)[:, longer.shape[1] - x.shape[1] :]


def _attention(c: HTransformerConfig, rotary: InterleavedRotary | None) -> nn.Module:
    if c.compat:
        return provided(c.compat)(c.dim, c.heads, c.dim_head, c.block_size, c.causal)
    if c.attention == "full":
        return SelfAttention(
            c.dim, c.pattern, c.heads, c.dim_head, c.kv_heads, rotary or False, c.dropout
        )
    return HAttention1D(
        c.dim,
        heads=c.heads,
        dim_head=c.dim_head,
        block_size=c.block_size,
        pos_emb=rotary,
        causal=c.causal,
        neighbors=c.neighbors,
        queries=c.queries,
        relative_bias=c.relative_bias,
        kv_heads=c.kv_heads,
        dropout=c.dropout,
    )


class HStack(nn.Module):
    """`depth` blocks and a final norm.

    Attributes:
        checkpointing: recompute each block in the backward pass; a reversible stack always does.
    """

    def __init__(self, c: HTransformerConfig) -> None:
        super().__init__()
        dim_head = head_size(c.dim, c.heads, c.dim_head)
        rotary = InterleavedRotary(dim_head) if c.rotary and not c.compat else None
        self.layers = nn.ModuleList(HBlock(c, rotary) for _ in range(c.depth))
        self.norm = nn.LayerNorm(c.dim)
        self.reversible = c.reversible
        self.checkpointing = False

    @property
    def blocks(self) -> list[HBlock]:
        return cast(list[HBlock], list(self.layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(batch, tokens, dim) -> same; mask (batch, tokens) True = real."""
        if self.reversible:
            return self.norm(reversible(x, [block.halves(mask) for block in self.blocks]))
        for block in self.blocks:
            if self.checkpointing and self.training:
                x = checkpoint(block, x, mask, use_reentrant=False)
            else:
                x = block(x, mask)
        return self.norm(x)

    def make_cache(
        self, batch: int, max_length: int | None = None, device: Device = None
    ) -> DecodingState:
        """An empty decoding state for `batch` rows."""
        return DecodingState(
            [block.make_cache(batch, max_length, device) for block in self.blocks]
        )

    def prefill(self, x: Tensor, cache: DecodingState) -> tuple[Tensor, DecodingState]:
        """The forward pass over the first tokens, remembered in an empty cache."""
        first = second = x
        for block, part in zip(self.blocks, cache.parts, strict=True):
            first = first + block.decode(second, part, "attn")
            if not self.reversible:
                second = first
            second = second + block.decode(first, part, "ff")
            if not self.reversible:
                first = second
        cache.position += x.shape[1]
        return self.norm(first + second if self.reversible else first), cache

    def step(self, x: Tensor, cache: DecodingState) -> tuple[Tensor, DecodingState]:
        """One more token: x (batch, 1, dim) -> same."""
        return self.prefill(x, cache)
