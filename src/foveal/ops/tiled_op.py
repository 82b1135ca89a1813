"""The tiled engine as one opaque operator for autograd, torch.compile, export and autocast."""

from __future__ import annotations

import torch
from torch import Tensor

from foveal.ops import tiled
from foveal.ops.bias import WindowBias
from foveal.ops.spec import describe, rebuild
from foveal.patterns import Pattern


def tiled_attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    bias: Tensor | WindowBias | None,
    key_mask: Tensor | None,
    scale: float,
    dropout_p: float,
) -> tuple[Tensor, Tensor]:
    """Shapes as in `attend`; returns (out, lse), both differentiable."""
    # drawn as a tensor, so that a compiled graph draws a new one at every call
    seed = torch.randint(1 << 62, ()) if dropout_p else None
    rows, columns = bias if isinstance(bias, WindowBias) else (None, None)
    dense = None if isinstance(bias, WindowBias) else bias
    text, sizes = describe(pattern)
    return _forward_op(
        q, k, v, dense, rows, columns, key_mask, seed, text, sizes, scale, dropout_p
    )


@torch.library.custom_op("foveal::tiled_forward", mutates_args=())
def _forward_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    rows: Tensor | None,
    columns: Tensor | None,
    key_mask: Tensor | None,
    seed: Tensor | None,
    pattern: str,
    sizes: list[int],
    scale: float,
    dropout_p: float,
) -> tuple[Tensor, Tensor]:
    out, lse = tiled.forward(
        _inputs(q, k, v, bias, rows, columns, key_mask, seed, pattern, sizes, scale, dropout_p)
    )
    return out.flatten(1, 2), lse.flatten(1, 2)


@_forward_op.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    rows: Tensor | None,
    columns: Tensor | None,
    key_mask: Tensor | None,
    seed: Tensor | None,
    pattern: str,
    sizes: list[int],
    scale: float,
    dropout_p: float,
) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty((*q.shape[:-1], v.shape[-1])), q.new_empty(q.shape[:-1], dtype=dtype)


@torch.library.custom_op("foveal::tiled_backward", mutates_args=())
def _backward_op(
    grad_out: Tensor,
    grad_lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    rows: Tensor | None,
    columns: Tensor | None,
    key_mask: Tensor | None,
    seed: Tensor | None,
    out: Tensor,
    lse: Tensor,
    pattern: str,
    sizes: list[int],
    scale: float,
    dropout_p: float,
) -> list[Tensor]:
    inputs = _inputs(
        q, k, v, bias, rows, columns, key_mask, seed, pattern, sizes, scale, dropout_p
    )
    shape = inputs.q.shape[:3]
    grads = tiled.backward(
        inputs,
        out.view(*shape, -1, out.shape[-1]),
        lse.view(*shape, -1),
        grad_out.reshape(*shape, -1, out.shape[-1]),
        grad_lse.reshape(*shape, -1),
    )
    found = [grads.q.flatten(1, 2), grads.k, grads.v]
    found += [] if grads.bias is None else [grads.bias]
    found += [] if grads.window is None else [part.flatten(1, 2) for part in grads.window]
    given = _given(q, k, v, bias, rows, columns)
    return [grad.to(x.dtype) for grad, x in zip(found, given, strict=True)]


def _given(*inputs: Tensor | None) -> list[Tensor]:
    return [x for x in inputs if x is not None]


@_backward_op.register_fake
def _(
    grad_out: Tensor,
    grad_lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    rows: Tensor | None,
    columns: Tensor | None,
    key_mask: Tensor | None,
    seed: Tensor | None,
    out: Tensor,
    lse: Tensor,
    pattern: str,
    sizes: list[int],
    scale: float,
    dropout_p: float,
) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in _given(q, k, v, bias, rows, columns)]


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    *tensors, pattern, sizes, scale, dropout_p = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.options = (pattern, sizes, scale, dropout_p)


def _backward(ctx, grad_out, grad_lse):  # type: ignore[no-untyped-def]
    saved = ctx.saved_tensors  # once: activation checkpointing unpacks them only once
    grads = iter(_backward_op(grad_out, grad_lse, *saved, *ctx.options))
    return (*(None if x is None else next(grads) for x in saved[:6]), *(None,) * 6)


_forward_op.register_autograd(_backward, setup_context=_setup_context)


def _inputs(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    rows: Tensor | None,
    columns: Tensor | None,
    key_mask: Tensor | None,
    seed: Tensor | None,
    pattern: str,
    sizes: list[int],
    scale: float,
    dropout_p: float,
) -> tiled.Inputs:
    def by_kv_head(x: Tensor) -> Tensor:
        return _unit_stride(x).unflatten(1, (k.shape[1], -1))

    window = None
    if rows is not None and columns is not None:
        window = WindowBias(by_kv_head(rows), by_kv_head(columns))
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return tiled.Inputs(
        q=by_kv_head(q),
        k=_unit_stride(k),
        v=_unit_stride(v),
        pattern=rebuild(pattern, sizes),
        bias=None if bias is None else bias.to(dtype),
        window=window,
        key_bias=None if key_mask is None else (~key_mask).to(dtype) * tiled.MASKED,
        scale=scale,
        dropout_p=dropout_p,
        seed=0 if seed is None else int(seed),
    )


def _unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()
