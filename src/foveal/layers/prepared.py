"""Steps of decoding as plain functions of weights, past the ceremony of modules.

At batch 1 a small block computes for some fifty microseconds; calling its modules takes longer. So
what is to step many times is prepared once: a module of a known kind with nothing attached to it
becomes a function of its weights, any other one is called as it is. What was prepared holds while
nothing is attached, exchanged or switched; weights may change in place.

Shapes: B batch, H heads, E features of a head, D features. A row is (D,) where B is 1, whose
products are those of a matrix with a vector, and (B, D) otherwise.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from foveal.layers.attention import SelfAttention
from foveal.layers.dropout import Dropout, PlacedDropout
from foveal.layers.feed_forward import FEW, FeedForward, gelu
from foveal.layers.linear import is_plain, project, row_product
from foveal.layers.rotary import Rotary

Row = Callable[[Tensor], Tensor]
Step = Callable[[Tensor, Any], tuple[Tensor, Any]]
Turn = Callable[[Tensor, Any], Tensor]

WIDE = (torch.float32, torch.float64)
"""What is not rounded between the parts of a formula more than inside of it."""


def can_prepare() -> bool:
    """Whether no gradient, autocast or compiler sees what a module computes."""
    return not (
        torch.is_grad_enabled()
        or torch.is_autocast_enabled("cpu")
        or torch.is_autocast_enabled("cuda")
        or torch.compiler.is_compiling()
    )


def as_row(x: Tensor) -> Tensor:
    """(B, 1, D) -> a row."""
    return x.reshape(-1) if len(x) == 1 else x.reshape(len(x), -1)


def prepared(module: nn.Module, rows: int) -> Row | None:
    """What a module makes of a row; None for nothing at all."""
    if not does_something(module):
        return None
    if is_plain(module, nn.LayerNorm):
        return _norm(module)
    if is_plain(module):
        layer = cast(nn.Linear, module)
        return row_product(layer.weight, layer.bias, rows)
    if is_plain(module, FeedForward) and module.activation == "gelu":
        return _feed_forward(cast(FeedForward, module), rows)

    def call(x: Tensor) -> Tensor:
        y = project(module, x.view(rows, 1, -1))
        return y.reshape(-1) if rows == 1 else y.reshape(rows, -1)

    return call


def prepared_embedding(module: nn.Module) -> Row:
    """Tokens (...) -> (..., D)."""
    if is_plain(module, nn.Embedding) and module.max_norm is None:
        return functools.partial(torch.embedding, module.weight)
    return module


def in_order(*parts: Row | None) -> Row:
    """One after the other, of which some do nothing."""
    given = [part for part in parts if part is not None]
    if len(given) == 1:
        return given[0]

    def run(x: Tensor) -> Tensor:
        for part in given:
            x = part(x)
        return x

    return run


def does_something(module: nn.Module) -> bool:
    """Whether it is more than an identity or a dropout that is off, with nothing attached."""
    off = is_plain(module, nn.Dropout, Dropout, PlacedDropout) and not module.training
    return not (off or is_plain(module, nn.Identity))


def _norm(norm: Any) -> Row:
    shape, weight, bias, eps = norm.normalized_shape, norm.weight, norm.bias, norm.eps
    return lambda x: torch.layer_norm(x, shape, weight, bias, eps)


def _feed_forward(ff: FeedForward, rows: int) -> Row:
    hidden, out = prepared(ff.to_hidden, rows), prepared(ff.to_out, rows)
    return in_order(hidden, _gelu, prepared(ff.dropout, rows), out)


def _gelu(x: Tensor) -> Tensor:
    """The exact GELU by its formula, of which torch has a fast kernel for each part."""
    if x.dtype not in WIDE or x.numel() > FEW:
        return gelu(x)
    half = x * 0.5
    return torch.addcmul(half, half, (x * math.sqrt(0.5)).erf_())


# -- attention ------------------------------------------------------------------------------------


class Turns:
    """The rotary positions of one step, looked up once for all layers that share them."""

    def __init__(self) -> None:
        self._known: dict[nn.Module, Turn] = {}

    def of(self, rotary: nn.Module | None) -> Turn | None:
        """A function that turns (B, H, 1, E) at a position, an int or a tensor ()."""
        if rotary is None:
            return None
        if rotary not in self._known:
            self._known[rotary] = _turn(rotary)
        return self._known[rotary]


def _turn(rotary: nn.Module) -> Turn:
    if not is_plain(rotary, Rotary):
        return lambda x, position: rotary(x.transpose(1, 2), position).transpose(1, 2)
    plain = cast(Rotary, rotary)
    seen: tuple[Any, Any, Any] = (None, None, None)

    def turn(x: Tensor, position: Any) -> Tensor:
        nonlocal seen
        if x.dtype not in WIDE:
            return plain.forward(x.transpose(1, 2), position).transpose(1, 2)
        place, parts, like = seen
        if place is None or isinstance(position, Tensor) or place != position or like != x.dtype:
            parts = plain.parts(position, x)
            seen = (position, parts, x.dtype)
        cos, sin, partners = parts
        return torch.addcmul(x * cos, x.index_select(3, partners), sin)

    return turn


def can_prepare_attention(attn: nn.Module) -> bool:
    """Whether a step of attention is what `prepared_block` knows, as the layer itself says."""
    return isinstance(attn, SelfAttention) and attn.is_plain and can_prepare()


def _attention(attn: SelfAttention, rows: int, turns: Turns) -> Step:
    heads, kv_heads = attn.heads, attn.kv_heads
    turning = heads + kv_heads
    shape = (rows, turning + kv_heads, 1, attn.dim_head)
    flat = (-1,) if rows == 1 else (rows, -1)
    to_qkv, to_out = (in_order(prepared(one, rows)) for one in (attn.to_qkv, attn.to_out))
    turn, shaping = turns.of(attn.rotary), attn.shaping

    def step(x: Tensor, cache: Any) -> tuple[Tensor, Any]:
        qk, v = to_qkv(x).view(shape).split((turning, kv_heads), 1)
        if turn is not None:
            qk = turn(qk, cache.position)
        q, k = qk.split((heads, kv_heads), 1)
        cache = cache.append(k, v)
        return to_out(cache.attend(q, **shaping).reshape(flat)), cache

    return step


def prepared_block(block: Any, rows: int, turns: Turns) -> Step:
    """`Block.step` over rows, of a block that `can_prepare_attention`."""
    attn = _attention(block.attn, rows, turns)
    attn_norm = in_order(prepared(block.attn_norm, rows))
    dropout = prepared(block.dropout, rows)
    feed = in_order(prepared(block.ff_norm, rows), prepared(block.ff, rows), dropout)

    def step(x: Tensor, cache: Any) -> tuple[Tensor, Any]:
        y, cache = attn(attn_norm(x), cache)
        x = x + (y if dropout is None else dropout(y))
        return x + feed(x), cache

    return step
