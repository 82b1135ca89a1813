"""The branches of H-Transformer-1D: encoder or language model, and the decoder of a pair."""

from __future__ import annotations

from typing import Any

from torch import nn

from foveal.common.lazy import provided
from foveal.layers.attention import SelfAttention
from foveal.layers.checks import head_size
from foveal.layers.feed_forward import FeedForward
from foveal.layers.hierarchical import HAttention1D, InterleavedRotary
from foveal.layers.hierarchical_cross import HCrossAttention1D
from foveal.layers.residual import ResidualBlock, ResidualStack
from foveal.layers.token_shift import TokenShift
from foveal.models.htransformer.config import HTransformerConfig


def make_stack(c: HTransformerConfig, cross: bool = False) -> ResidualStack:
    """`depth` blocks of attention and feed-forward, and a final norm.

    Args:
        cross: attention over a memory between the two.
    """
    dim_head = head_size(c.dim, c.heads, c.dim_head)
    rotary = InterleavedRotary(dim_head) if c.rotary and not c.compat else None
    blocks = [_block(c, rotary, cross) for _ in range(c.depth)]
    return ResidualStack(blocks, nn.LayerNorm(c.dim), c.reversible)


def _block(c: HTransformerConfig, rotary: InterleavedRotary | None, cross: bool) -> ResidualBlock:
    inner = {"attn": _attention(c, rotary)}
    if cross:
        inner["cross"] = HCrossAttention1D(c.dim, **_shared(c, rotary))
    inner["ff"] = FeedForward(c.dim, c.ff_mult, c.activation, c.dropout)
    shifts = {}
    if c.shifts is not None:
        shifts["attn"] = TokenShift(c.dim, shifts=c.shifts)
        # the package sends the mask to attention only
        shifts["ff"] = TokenShift(c.dim, shifts=c.shifts, masked=c.compat is None)
    return ResidualBlock(c.dim, c.dropout, shifts, **inner)


def _attention(c: HTransformerConfig, rotary: InterleavedRotary | None) -> nn.Module:
    if c.compat:
        return provided(c.compat)(c.dim, c.heads, c.dim_head, c.block_size, c.causal)
    if c.attention == "full":
        sizes = (c.heads, c.dim_head, c.kv_heads)
        return SelfAttention(c.dim, c.pattern, *sizes, rotary or False, c.dropout)
    return HAttention1D(
        c.dim, **_shared(c, rotary), causal=c.causal, queries=c.queries, kv_heads=c.kv_heads
    )


def _shared(c: HTransformerConfig, rotary: InterleavedRotary | None) -> dict[str, Any]:
    """What attention over the sequence itself and over a memory have in common."""
    return {
        "heads": c.heads,
        "dim_head": c.dim_head,
        "block_size": c.block_size,
        "pos_emb": rotary or False,
        "neighbors": c.neighbors,
        "relative_bias": c.relative_bias,
        "dropout": c.dropout,
    }
