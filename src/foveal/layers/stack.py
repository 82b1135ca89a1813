"""Pre-norm transformer blocks, and stacks of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from foveal.caches import DecodingState
from foveal.common.arguments import checked
from foveal.layers.attention import AttentionState, SelfAttention
from foveal.layers.feed_forward import Activation, FeedForward
from foveal.layers.native_step import native_step
from foveal.layers.position_bias import PositionBias
from foveal.layers.positions import Positions
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
from foveal.layers.residual import ResidualBlock, ResidualStack
from foveal.patterns import Pattern


class Block(ResidualBlock):
    """x + attention(norm(x)), then x + feed-forward(norm(x)).

    Args:
        dim, pattern, heads, dim_head, kv_heads, rotary: as in SelfAttention.
        ff_mult, activation: as in FeedForward.
        dropout: on attention weights, hidden features and both residual branches.
        softcap, sinks: as in SelfAttention.
    """

    attention_class: ClassVar[type[SelfAttention]] = SelfAttention
    attn: SelfAttention
    ff: FeedForward
    attn_norm: nn.LayerNorm
    ff_norm: nn.LayerNorm

    @checked
    def __init__(
        self,
        dim: int,
        pattern: Pattern,
        heads: int = 8,
        dim_head: int | None = 64,
        kv_heads: int | None = None,
        rotary: bool | Positions | Relative | PositionBias = True,
        ff_mult: float = 4,
        activation: Activation = "gelu",
        dropout: float = 0.0,
        *,
        softcap: float | None = None,
        sinks: bool = False,
    ) -> None:
        sizes = (heads, dim_head, kv_heads)
        # only what is asked for: an attention class of a stranger may know neither
        shaping = _given(softcap, sinks)
        attn = self.attention_class(dim, pattern, *sizes, rotary, dropout, **shaping)
        super().__init__(
            dim, dropout, attn=attn, ff=FeedForward(dim, ff_mult, activation, dropout)
        )

    def step(self, x: Tensor, cache: AttentionState) -> tuple[Tensor, AttentionState]:
        """One more token: x (batch, 1, dim) -> same."""
        if self._is_known():
            y, cache = prepared_block(self, len(x), Turns())(as_row(x), cache)
            return y.view(x.shape), cache
        attn, ff = self.branches
        y, cache = attn.decode(x, cache, first=False)
        x = attn.add(x, y)
        return ff.add(x, ff.run(x)), cache

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


def _given(softcap: float | None, sinks: bool) -> dict[str, Any]:
    options = {"softcap": softcap, "sinks": sinks or None}
    return {name: value for name, value in options.items() if value is not None}


class Stack(ResidualStack):
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
        rotary: bool | Positions | Relative | PositionBias = True,
        ff_mult: float = 4,
        activation: Activation = "gelu",
        dropout: float = 0.0,
        norm_out: bool = True,
        *,
        softcap: float | None = None,
        sinks: bool = False,
    ) -> None:
        if depth < 0:
            raise ValueError(f"depth must not be negative, got {depth=}.")
        if not patterns:
            raise ValueError("patterns must name at least one pattern, got none.")
        rest = (heads, dim_head, kv_heads, rotary, ff_mult, activation, dropout)
        shaping = _given(softcap, sinks)
        super().__init__(
            [
                self.block_class(dim, patterns[i % len(patterns)], *rest, **shaping)
                for i in range(depth)
            ],
            nn.LayerNorm(dim) if norm_out else nn.Identity(),
        )

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
