"""Validation of attend()'s arguments: once, at the door, skipped while compiling."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from foveal.common.checks import as_bool, as_number, check_dense
from foveal.common.memo import remember
from foveal.common.words import shorten
from foveal.ops.bias import Alibi, Bias, TableBias, WindowBias
from foveal.ops.define import is_plain
from foveal.ops.sharded import check_whole
from foveal.ops.work import Work
from foveal.patterns import Pattern

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
SOFTCAPS = (1e-30, 1e30)
"""Between these float32 divides by a bound of logits and multiplies with it."""


def check_tensors(
    q: Any,
    k: Any,
    v: Any,
    pattern: Any,
    bias: Any,
    key_mask: Any,
    dropout_p: Any,
    return_lse: Any,
    sinks: Any = None,
    scale: Any = None,
) -> None:
    """Raise ValueError or TypeError naming the first argument that is of a wrong kind.

    What depends on sizes alone is left to `check_sizes`.
    """
    check_pattern(pattern)
    if not (isinstance(q, Tensor) and isinstance(k, Tensor) and isinstance(v, Tensor)):
        kinds = ", ".join(type(x).__name__ for x in (q, k, v))
        raise TypeError(f"q, k and v must be tensors, got {kinds}.")
    check_whole(q, k, v, bias, key_mask, sinks)
    if not q.dtype == k.dtype == v.dtype or q.dtype not in DTYPES:
        raise ValueError(
            "q, k and v must share one floating dtype (float64, float32, float16 or bfloat16), "
            f"got {q.dtype}, {k.dtype}, {v.dtype}."
        )
    check_dense("q", q)
    check_dense("k", k)
    check_dense("v", v)
    if not q.device == k.device == v.device:
        raise ValueError(
            f"q, k and v must be on one device, got {q.device}, {k.device}, {v.device}."
        )
    if type(dropout_p) is not float or dropout_p != 0.0:
        _check_dropout(dropout_p)
    if return_lse is not True and return_lse is not False:
        as_bool("return_lse", return_lse)
    if bias is not None:
        _check_bias(q, k, pattern, bias)
    if key_mask is not None:
        _check_key_mask(q, k, key_mask)
    if sinks is not None:
        _check_sinks(q, sinks)
    check_dense("scale", scale)


def check_pattern(pattern: Any) -> None:
    """Raise TypeError unless it is a pattern."""
    if not isinstance(pattern, Pattern):
        raise TypeError(
            f"pattern must be a foveal.patterns.Pattern, got {type(pattern).__name__}; "
            "for dense attention pass patterns.Full()."
        )


def as_scale(scale: Any) -> float:
    """A scale that is a number.

    Raises:
        ValueError: it is none, or not finite.
    """
    if type(scale) is float and -1e30 < scale < 1e30:
        return scale
    return float(as_number("scale", scale))


def as_softcap(softcap: Any) -> float | None:
    """The bound of the logits as a float, or None.

    Raises:
        TypeError: it is a tensor.
        ValueError: it is no positive number.
    """
    if softcap is None:
        return None
    if isinstance(softcap, Tensor):
        raise TypeError(
            "softcap must be a number, got a tensor, which would get no gradient; use .item()."
        )
    try:
        return float(as_number("softcap", softcap, *SOFTCAPS))
    except ValueError:
        raise ValueError(
            f"softcap must be a positive number (from {SOFTCAPS[0]} to {SOFTCAPS[1]}), got "
            f"{softcap=}; None leaves logits unbounded."
        ) from None


def fold_scale(q: Tensor, scale: Tensor) -> Tensor:
    """q times a scale that is a tensor: a learned temperature gets its gradient everywhere.

    Raises:
        ValueError: the scale does not broadcast over the queries, or is not of real numbers.
    """
    wanted = (*q.shape[:3], 1)
    shape = (1,) * (4 - scale.ndim) + tuple(scale.shape)
    fits = len(shape) == 4 and all(
        have in (1, want) for have, want in zip(shape, wanted, strict=True)
    )
    if not fits or not (scale.dtype.is_floating_point or _is_int(scale.dtype)):
        raise ValueError(
            "scale must be a number, or a tensor that broadcasts to (batch, heads, n_queries, 1) "
            f"= {wanted}, got {scale.dtype} {tuple(scale.shape)}."
        )
    if scale.device != q.device and scale.ndim:
        raise ValueError(f"scale must be on the device of q, {q.device}, got {scale.device}.")
    wide = torch.promote_types(q.dtype, torch.float32)
    return (q.to(wide) * scale.to(wide)).to(q.dtype)


def _is_int(dtype: torch.dtype) -> bool:
    return not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)


def _check_dropout(dropout_p: Any) -> None:
    if isinstance(dropout_p, Tensor):
        raise TypeError(
            "dropout_p must be a number, got a tensor, which would get no gradient; use .item()."
        )
    try:
        as_number("dropout_p", dropout_p, 0.0, 1.0)
    except ValueError:
        raise ValueError(f"dropout_p must be a number in [0, 1), got {dropout_p=}.") from None


def _check_bias(q: Tensor, k: Tensor, pattern: Pattern, bias: Bias) -> None:
    if q.ndim != 4 or k.ndim != 4:
        return  # which `check_sizes` says
    if isinstance(bias, WindowBias | TableBias | Alibi):
        for field, values in zip(bias._fields, bias, strict=True):
            check_dense(f"{type(bias).__name__}.{field}", values)
        if pattern.biased_by_table and isinstance(bias, WindowBias):
            _refuse_bias(bias, pattern)
        bias.check(q, pattern)
        if isinstance(bias, TableBias | Alibi):
            _check_numbers(bias)
            _check_tokens(q, k, pattern, bias)
        return
    if not isinstance(bias, Tensor):
        raise TypeError(
            "bias must be a tensor, a WindowBias, a TableBias (PyramidBias) or alibi(heads), got "
            f"{type(bias).__name__} {shorten(repr(bias), 60)}."
        )
    if pattern.biased_by_table or pattern.pools:
        _refuse_bias(bias, pattern)
    if bias.dtype not in DTYPES:
        raise ValueError(
            f"bias must be floating (float64, float32, float16 or bfloat16), got {bias.dtype}; a "
            "mask of keys is a key_mask."
        )
    check_dense("bias", bias)
    if bias.device != q.device:
        raise ValueError(f"bias must be on the device of q, {q.device}, got {bias.device}.")


def _refuse_bias(bias: Bias, pattern: Pattern) -> None:
    raise ValueError(
        f"{type(pattern).__name__} takes a TableBias (PyramidBias) or none, got "
        f"bias={type(bias).__name__} with {pattern}."
    )


def _check_numbers(bias: TableBias | Alibi) -> None:
    """Whether a table holds numbers: of ordinary tensors of the CPU, others would wait for it."""
    values = bias[0]
    if not is_plain(values) or math.isfinite(values.detach().sum().item()):
        return
    if not bool(values.isfinite().all()):  # and not a sum that is too large
        name = f"{type(bias).__name__}.{bias._fields[0]}"
        count = int((~values.isfinite()).sum())
        raise ValueError(
            f"{name} must hold finite numbers, got {count} of {values.numel()} that are NaN or "
            "infinite; pairs that do not exist belong into the pattern."
        )


def _check_tokens(q: Tensor, k: Tensor, pattern: Pattern, bias: TableBias | Alibi) -> None:
    """Where distances in tokens are asked for, whether they are those of the positions."""
    if isinstance(bias, TableBias) and not bias.counts_tokens(pattern):
        return
    if not pattern.counts_tokens(k.shape[2]):
        raise ValueError(
            f"{pattern} strides its queries, which have no distance in tokens; pass a TableBias "
            "with the pattern's own rows, or rows=function of (q_idx, k_idx)."
        )


def _check_key_mask(q: Tensor, k: Tensor, key_mask: Any) -> None:
    if not isinstance(key_mask, Tensor):
        raise TypeError(f"key_mask must be a bool tensor, got {type(key_mask).__name__}.")
    check_dense("key_mask", key_mask)
    expected = (k.shape[0], k.shape[2]) if k.ndim == 4 else ()
    if key_mask.dtype != torch.bool or tuple(key_mask.shape) != expected:
        raise ValueError(
            f"key_mask must be bool of shape (batch, n_keys) = {expected}, got "
            f"{key_mask.dtype} {tuple(key_mask.shape)}; True marks a real key."
        )
    if key_mask.device != q.device:
        raise ValueError(f"key_mask must be on the device of q, got {key_mask.device}.")


def _check_sinks(q: Tensor, sinks: Any) -> None:
    if not isinstance(sinks, Tensor):
        raise TypeError(
            "sinks must be a floating tensor (heads,), a logit for each head, got "
            f"{type(sinks).__name__} {shorten(repr(sinks), 60)}."
        )
    if sinks.dtype not in DTYPES:
        raise ValueError(
            f"sinks must be floating (float64, float32, float16 or bfloat16), got {sinks.dtype}."
        )
    check_dense("sinks", sinks)
    if q.ndim == 4 and tuple(sinks.shape) != (q.shape[1],):
        raise ValueError(
            f"sinks must hold a logit for each head, (heads,) = ({q.shape[1]},), got "
            f"{tuple(sinks.shape)}."
        )
    if sinks.device != q.device:
        raise ValueError(f"sinks must be on the device of q, {q.device}, got {sinks.device}.")


@remember(entries=512, key=Work.cache_key)
def check_sizes(work: Work) -> None:
    """Raise ValueError naming the first size that does not fit the others."""
    q, k, v = work.q, work.k, work.v
    shapes = f"got q {tuple(q)}, k {tuple(k)}, v {tuple(v)}."
    if not len(q) == len(k) == len(v) == 4:
        raise ValueError(f"q, k and v must be (batch, heads, length, head_dim), {shapes}")
    if not q[0] == k[0] == v[0]:
        raise ValueError(f"q, k and v must have one batch size, {shapes}")
    if q[3] != k[3]:
        raise ValueError(f"q and k must have the same head_dim, {shapes}")
    if k[1:3] != v[1:3]:
        raise ValueError(f"k and v must have the same heads and length, {shapes}")
    if k[1] == 0 or q[1] % k[1]:
        raise ValueError(f"heads of q must be a multiple of the heads of k and v, {shapes}")
    if q[3] == 0:
        raise ValueError(f"q and k must have at least one feature, {shapes}")
    if work.bias == "tensor":
        full, shape = (*q[:3], k[2]), work.bias_shape
        fits = len(shape) == 4 and all(
            have in (1, want) for have, want in zip(shape, full, strict=True)
        )
        if not fits:
            raise ValueError(
                "bias must be floating and broadcast to (batch, heads, n_queries, n_keys) = "
                f"{full}, got {shape}."
            )
    if work.pattern.heads is not None and work.pattern.heads != q[1]:
        raise ValueError(
            f"pattern has layouts for {work.pattern.heads} heads, but q has {q[1]} heads."
        )
    work.pattern.check_lengths(q[2], k[2])
