"""Pre-norm transformer blocks, and stacks of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, cast

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from foveal.caches import DecodingState
from foveal.common.arguments import checked
from foveal.layers.attention import AttentionState, RelativeAttention, SelfAttention
from foveal.layers.checks import Device
from foveal.layers.feed_forward import Activation, FeedForward
from foveal.layers.native_step import native_step
from foveal.layers.prepared import (
    Step,
    Turns,
    as_row,
    can_prepare,
    can_prepare_attention,
    in_order,
    prepared,
    prepared_block,
)
from foveal.layers.relative import Relative
from foveal.layers.rotary import Rotary
from foveal.patterns import Pattern


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)).

    Args:
        dim, pattern, heads, dim_head, kv_heads: as in SelfAttention.
        rotary: as in SelfAttention, or a Relative for relative attention in its place.
        ff_mult, activation: as in FeedForward.
        dropout: on attention weights, hidden features and both residual branches.
    """

    attention_class: ClassVar[type[SelfAttention]] = SelfAttention

    @checked
    def __init__(
        self,
        dim: int,
        pattern: Pattern,
        heads: int = 8,
        dim_head: int | None = 64,
        kv_heads: int | None = None,
        rotary: bool | Rotary | Relative = True,
        ff_mult: float = 4,
        activation: Activation = "gelu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.attn_norm = nn.LayerNorm(dim)
        self.attn: SelfAttention
        if isinstance(rotary, Relative):
            self.attn = RelativeAttention(dim, pattern, heads, dim_head, kv_heads, rotary, dropout)
        else:
            cls = self.attention_class
            self.attn = cls(dim, pattern, heads, dim_head, kv_heads, rotary, dropout)
        self.ff_norm = nn.LayerNorm(dim)
        self.ff = FeedForward(dim, ff_mult, activation, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(batch, tokens, dim) -> same; mask (batch, tokens) True = real."""
        return self._add(x, self.attn(self.attn_norm(x), mask))

    def prefill(self, x: Tensor, cache: AttentionState) -> tuple[Tensor, AttentionState]:
        """The forward pass over the first tokens, remembered in an empty cache."""
        y, cache = self.attn.prefill(self.attn_norm(x), cache)
        return self._add(x, y), cache

    def step(self, x: Tensor, cache: AttentionState) -> tuple[Tensor, AttentionState]:
        """One more token: x (batch, 1, dim) -> same."""
        if self._is_known():
            y, cache = prepared_block(self, len(x), Turns())(as_row(x), cache)
            return y.view(x.shape), cache
        y, cache = self.attn.step(self.attn_norm(x), cache)
        return self._add(x, y), cache

    def stepper(self, rows: int, turns: Turns) -> Step:
        """`step` over rows, as in foveal.layers.prepared, for many tokens."""
        if self._is_known():
            return prepared_block(self, rows, turns)

        def step(x: Tensor, cache: AttentionState) -> tuple[Tensor, AttentionState]:
            y, cache = self.step(x.view(rows, 1, -1), cache)
            return as_row(y), cache

        return step

    def _is_known(self) -> bool:
        return type(self) is Block and can_prepare_attention(self.attn)

    def _add(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.dropout(attended)
        return x + self.dropout(self.ff(self.ff_norm(x)))


class Stack(nn.Module):
    """Blocks one after the other, closed by a LayerNorm.

    Args:
        dim: features in and out.
        depth: number of blocks; 0 leaves the LayerNorm.
        patterns: cycled over the blocks.
        norm_out: end in a LayerNorm.
        Others as in Block.

    Attributes:
        checkpointing: recompute each block in the backward pass instead of keeping what it made.
    """

    block_class: ClassVar[type[Block]] = Block

    @checked
    def __init__(
        self,
        dim: int,
        depth: int,
        patterns: Sequence[Pattern],
        heads: int = 8,
        dim_head: int | None = 64,
        kv_heads: int | None = None,
        rotary: bool | Rotary | Relative = True,
        ff_mult: float = 4,
        activation: Activation = "gelu",
        dropout: float = 0.0,
        norm_out: bool = True,
    ) -> None:
        super().__init__()
        if depth < 0:
            raise ValueError(f"depth must not be negative, got {depth=}.")
        if not patterns:
            raise ValueError("patterns must name at least one pattern, got none.")
        rest = (heads, dim_head, kv_heads, rotary, ff_mult, activation, dropout)
        self.layers = nn.ModuleList(
            self.block_class(dim, patterns[i % len(patterns)], *rest) for i in range(depth)
        )
        self.norm = nn.LayerNorm(dim) if norm_out else nn.Identity()
        self.checkpointing = False

    @property
    def blocks(self) -> list[Block]:
        """The blocks in the order in which they run."""
        return cast(list[Block], list(self.layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(batch, tokens, dim) -> same; mask (batch, tokens) True = real."""
        for layer in self.blocks:
            if self.checkpointing and self.training:
                x = checkpoint(layer, x, mask, use_reentrant=False)
            else:
                x = layer(x, mask)
        return self.norm(x)

    def make_cache(
        self, batch: int, max_length: int | None = None, device: Device = None
    ) -> DecodingState:
        """An empty decoding state for `batch` rows; on the layers' device if None is given."""
        return DecodingState(
            [block.attn.make_cache(batch, max_length, device) for block in self.blocks]
        )

    def prefill(self, x: Tensor, cache: DecodingState) -> tuple[Tensor, DecodingState]:
        """The forward pass over the first tokens, remembered in an empty cache."""
        for i, layer in enumerate(self.blocks):
            x, cache.parts[i] = layer.prefill(x, cache.parts[i])
        cache.position += x.shape[1]
        return self.norm(x), cache

    def step(self, x: Tensor, cache: DecodingState) -> tuple[Tensor, DecodingState]:
        """One more token: x (batch, 1, dim) -> same."""
        for i, layer in enumerate(self.blocks):
            x, cache.parts[i] = layer.step(x, cache.parts[i])
        cache.position += 1
        return self.norm(x), cache

    def stepper(self, rows: int, turns: Turns | None = None) -> Step:
        """`step` for many tokens of `rows` rows, prepared: see foveal.layers.prepared."""
        if type(self).step is not Stack.step or not can_prepare():
            return self.step
        turns = turns or Turns()
        blocks = [block.stepper(rows, turns) for block in self.blocks]
        norm, native = in_order(prepared(self.norm, rows)), native_step(self.blocks, rows)

        def step(x: Tensor, cache: DecodingState) -> tuple[Tensor, DecodingState]:
            parts = cache.parts
            if native is not None and native.serves(x, parts):
                y = native(x, parts)
            else:
                y = as_row(x)
                for i, block in enumerate(blocks):
                    y, parts[i] = block(y, parts[i])
            cache.position += 1
            return norm(y).view(rows, 1, -1), cache

        return step
