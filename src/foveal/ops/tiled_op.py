"""impl="tiled" behind an operator: tensors by key/value head in, tensors by head out."""

from __future__ import annotations

import torch
from torch import Tensor

from foveal.ops import tiled, tiled_backward
from foveal.ops.bias import WindowBias, finite
from foveal.ops.operator import Operands, attention_operator, new_output, unit_stride


def _forward(operands: Operands) -> tuple[Tensor, Tensor]:
    out = new_output(operands.q, operands.v.shape[-1])
    lse = tiled.forward(_inputs(operands), _by_kv_head(out, operands.k), operands.need_lse)
    return out, lse.flatten(1, 2)


def _backward(
    operands: Operands, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor
) -> list[Tensor]:
    by_head = (_by_kv_head(x, operands.k) for x in (out, grad_out, grad_lse))
    grads = tiled_backward.backward(_inputs(operands), *by_head)
    found = [grads.q.flatten(1, 2), grads.k, grads.v]
    found += [] if grads.bias is None else [grads.bias]
    found += [] if grads.window is None else [part.flatten(1, 2) for part in grads.window]
    return [grad.to(x.dtype) for grad, x in zip(found, operands.given, strict=True)]


def _by_kv_head(x: Tensor, k: Tensor) -> Tensor:
    """(batch, heads, ...) -> (batch, kv_heads, repeats, ...)"""
    return x.unflatten(1, (k.shape[1], -1))


def _inputs(operands: Operands) -> tiled.Inputs:
    def by_kv_head(x: Tensor) -> Tensor:
        return _by_kv_head(unit_stride(x), operands.k)

    window = None
    if operands.rows is not None and operands.columns is not None:
        window = WindowBias(by_kv_head(operands.rows), by_kv_head(operands.columns))
    dtype, key_mask = operands.accumulation, operands.key_mask
    k, v = _readable(operands)
    return tiled.Inputs(
        q=by_kv_head(operands.q),
        k=unit_stride(k),
        v=unit_stride(v),
        pattern=operands.pattern,
        bias=None if operands.bias is None else finite(operands.bias, dtype),
        window=window,
        key_bias=_key_bias(key_mask, dtype),
        scale=operands.scale,
        dropout_p=operands.dropout_p,
        seeds=_seeds(operands),
        softcap=operands.softcap,
        places=_places(operands),
    )


def _seeds(operands: Operands) -> list[int]:
    """One for all, or one for each example."""
    batch, seed = operands.q.shape[0], operands.seed
    return [] if seed is None else seed.flatten()[:batch].tolist()


def _places(operands: Operands) -> tuple[Tensor, Tensor] | None:
    """Where queries and keys stand, if what is dropped depends on it."""
    if operands.seed is None or operands.seed.ndim != 1:
        return None
    queries = operands.q.shape[2]
    places = operands.seed[operands.q.shape[0] :].to(operands.q.device)
    return places[:queries], places[queries:]


def _readable(operands: Operands) -> tuple[Tensor, Tensor]:
    """Keys and values; where nobody may read them zeros, for they may be NaN."""
    k, v, mask = operands.k, operands.v, operands.key_mask
    if mask is not None and mask.dtype == torch.bool:
        k, v = (x.masked_fill(~mask[:, None, :, None], 0.0) for x in (k, v))
    unread = tiled.plan(operands.pattern, k.shape[2]).unread
    if unread is not None:
        k, v = (x.index_fill(2, unread.to(x.device), 0.0) for x in (k, v))
    return k, v


def _key_bias(key_mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What a mask adds to the logits of its keys; a floating mask is added as it stands."""
    if key_mask is None or key_mask.is_floating_point():
        return key_mask
    return (~key_mask).to(dtype) * tiled.MASKED


tiled_attend = attention_operator("tiled", _forward, _backward)
