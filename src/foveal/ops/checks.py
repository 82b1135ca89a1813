"""Validation of attend()'s arguments: once, at the door, skipped while compiling."""

from __future__ import annotations

import torch
from torch import Tensor

from foveal.ops.bias import WindowBias
from foveal.ops.pyramid import PyramidBias
from foveal.patterns import Pattern


def check_inputs(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    bias: Tensor | WindowBias | PyramidBias | None,
    key_mask: Tensor | None,
    dropout_p: float,
) -> None:
    """Raise ValueError or TypeError naming the first argument that does not fit the others."""
    if not isinstance(pattern, Pattern):
        raise TypeError(
            f"pattern must be a foveal.patterns.Pattern, got {type(pattern).__name__}; "
            "for dense attention pass patterns.Full()."
        )
    _check_shapes(q, k, v)
    if not q.dtype == k.dtype == v.dtype or not q.dtype.is_floating_point:
        raise ValueError(
            f"q, k and v must share one floating dtype, got {q.dtype}, {k.dtype}, {v.dtype}."
        )
    if not q.device == k.device == v.device:
        raise ValueError(
            f"q, k and v must be on one device, got {q.device}, {k.device}, {v.device}."
        )
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p must be in [0, 1), got {dropout_p=}.")
    if isinstance(bias, WindowBias | PyramidBias):
        bias.check(q, pattern)
        bias = None
    _check_extras(q, k, bias, key_mask)
    if pattern.heads is not None and pattern.heads != q.shape[1]:
        raise ValueError(
            f"pattern has layouts for {pattern.heads} heads, but q has {q.shape[1]} heads."
        )


def _check_shapes(q: Tensor, k: Tensor, v: Tensor) -> None:
    shapes = f"got q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}."
    if not q.ndim == k.ndim == v.ndim == 4:
        raise ValueError(f"q, k and v must be (batch, heads, length, head_dim), {shapes}")
    if not q.shape[0] == k.shape[0] == v.shape[0]:
        raise ValueError(f"q, k and v must have one batch size, {shapes}")
    if q.shape[3] != k.shape[3]:
        raise ValueError(f"q and k must have the same head_dim, {shapes}")
    if k.shape[1:3] != v.shape[1:3]:
        raise ValueError(f"k and v must have the same heads and length, {shapes}")
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(f"heads of q must be a multiple of the heads of k and v, {shapes}")


def _check_extras(q: Tensor, k: Tensor, bias: Tensor | None, key_mask: Tensor | None) -> None:
    if key_mask is not None:
        expected = (k.shape[0], k.shape[2])
        if key_mask.dtype != torch.bool or tuple(key_mask.shape) != expected:
            raise ValueError(
                f"key_mask must be bool of shape (batch, n_keys) = {expected}, got "
                f"{key_mask.dtype} {tuple(key_mask.shape)}; True marks a real key."
            )
    if bias is not None:
        full = (q.shape[0], q.shape[1], q.shape[2], k.shape[2])
        fits = bias.ndim <= 4 and all(
            have in (1, want)
            for have, want in zip(reversed(bias.shape), reversed(full), strict=False)
        )
        if not fits or not bias.dtype.is_floating_point:
            raise ValueError(
                "bias must be floating and broadcast to (batch, heads, n_queries, n_keys) = "
                f"{full}, got {bias.dtype} {tuple(bias.shape)}."
            )
