"""One more token through a plain block, past the ceremony of its modules.

At batch 1 a small block computes for some fifty microseconds; calling its modules takes longer. So
a block whose parts are exactly those it was built with, with nothing attached to any of them, is
stepped through by plain functions of their weights. Everything else goes the ordinary way.

Shapes: B batch, H heads, E features of a head, D features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foveal.layers.attention import SelfAttention
from foveal.layers.feed_forward import FeedForward, gelu
from foveal.layers.linear import is_plain, linear
from foveal.layers.rotary import Rotary

if TYPE_CHECKING:
    from foveal.layers.stack import Block


def is_plain_block(block: Block) -> bool:
    """Whether `plain_step` computes what the block's modules would."""
    attn, ff = block.attn, block.ff
    return (
        type(attn) is SelfAttention
        and type(ff) is FeedForward
        and ff.activation == "gelu"
        and not torch.is_grad_enabled()
        and _does_nothing(block.dropout)
        and _does_nothing(ff.dropout)
        and is_plain(block.attn_norm, nn.LayerNorm)
        and is_plain(block.ff_norm, nn.LayerNorm)
        and is_plain(ff, FeedForward)
        and all(map(is_plain, (attn.to_qkv, attn.to_out, ff.to_hidden, ff.to_out)))
        and (attn.rotary is None or is_plain(attn.rotary, Rotary))
        and not attn.rotate_values
        and attn.relative is None
        and attn.rel_bias is None
    )


def _does_nothing(dropout: nn.Module) -> bool:
    """Whether it is a dropout that is off, with nothing in its place or attached to it."""
    return not (
        type(dropout) is not nn.Dropout
        or dropout.training
        or dropout._forward_hooks
        or dropout._forward_pre_hooks
        or "forward" in vars(dropout)
    )


def plain_step(block: Block, x: Tensor, cache: Any) -> tuple[Tensor, Any]:
    """`Block.step` of a block that `is_plain_block`: x (B, 1, D) -> same, cache."""
    attn, ff = block.attn, block.ff
    batch, heads, turning = len(x), attn.heads, attn.heads + attn.kv_heads
    y = _linear(attn.to_qkv, _norm(block.attn_norm, x)).view(batch, 1, -1, attn.dim_head)
    qk, v = y.split((turning, attn.kv_heads), 2)
    if attn.rotary is not None:
        qk = attn.rotary.forward(qk, cache.position)
    # of a single token (B, 1, H, E) and (B, H, 1, E) lie alike
    q, k = qk.view(batch, turning, 1, -1).split((heads, attn.kv_heads), 1)
    cache = cache.append(k, v.transpose(1, 2))
    x = x + _linear(attn.to_out, cache.attend(q).reshape(batch, 1, -1))
    hidden = gelu(_linear(ff.to_hidden, _norm(block.ff_norm, x)))
    return x + _linear(ff.to_out, hidden), cache


def _norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    return torch.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return linear(x, layer.weight, layer.bias)
