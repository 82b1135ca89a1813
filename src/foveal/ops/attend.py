"""attend(): exact attention under any pattern."""

from __future__ import annotations

from typing import Any, Literal, cast, overload

import torch
from torch import Tensor
from torch.compiler import is_compiling

from foveal.common import by_example
from foveal.common.words import suggest
from foveal.ops import autocast, dense, known, offset
from foveal.ops.bias import Bias, WindowBias, settle
from foveal.ops.checks import as_scale, as_softcap, check_sizes, check_tensors, fold_scale
from foveal.ops.choose import IMPLS, is_settled, pick
from foveal.ops.define import in_mode_of, is_stray
from foveal.ops.drop import ByPlace
from foveal.ops.glance import at_a_glance
from foveal.ops.implementations import IMPLEMENTATIONS
from foveal.ops.lowered import attend_lowered, is_lowering
from foveal.ops.sharded import check_context
from foveal.ops.work import Call, Work, work_of
from foveal.patterns import Pattern

USUAL_BATCH = 8
"""What the choice counts with where it may not depend on the batch."""


@overload
def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    *,
    bias: Bias | None = None,
    key_mask: Tensor | None = None,
    scale: float | Tensor | None = None,
    dropout_p: float = 0.0,
    impl: str | None = None,
    return_lse: Literal[False] = False,
    sinks: Tensor | None = None,
    softcap: float | None = None,
    q_offset: int = 0,
) -> Tensor: ...
@overload
def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    *,
    bias: Bias | None = None,
    key_mask: Tensor | None = None,
    scale: float | Tensor | None = None,
    dropout_p: float = 0.0,
    impl: str | None = None,
    return_lse: Literal[True],
    sinks: Tensor | None = None,
    softcap: float | None = None,
    q_offset: int = 0,
) -> tuple[Tensor, Tensor]: ...
@at_a_glance
def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    *,
    bias: Bias | None = None,
    key_mask: Tensor | None = None,
    scale: float | Tensor | None = None,
    dropout_p: float = 0.0,
    impl: str | None = None,
    return_lse: bool = False,
    sinks: Tensor | None = None,
    softcap: float | None = None,
    q_offset: int = 0,
) -> Tensor | tuple[Tensor, Tensor]:
    """Softmax attention in which each query reads only the keys that the pattern allows.

    Args:
        q: (batch, heads, n_queries, head_dim).
        k: (batch, kv_heads, n_keys, head_dim); kv_heads divides heads (grouped-query attention).
        v: (batch, kv_heads, n_keys, head_dim_v).
        pattern: who attends to whom; positions count from 0 in both queries and keys, and
            those of queries from `q_offset`.
        bias: added to the logits: floating, broadcastable to (batch, heads, n_queries, n_keys), or
            a WindowBias (Halo), a TableBias or `alibi(heads)`, computed inside the tiles. A pair
            at -inf does not exist; the lowest number of a dtype is a number like any other.
        key_mask: (batch, n_keys) bool, True = real key. A query left without any key gives
            zeros, never NaN, and passes no gradient. A Pyramid with coarse queries, where there
            are as many as keys, leaves the masked tokens out of its mean queries too. What
            stands in keys and values that no query may read, NaN too, reaches no result.
        scale: factor of q k^T; head_dim ** -0.5 when None. A tensor that broadcasts to
            (batch, heads, n_queries, 1), such as a learned temperature, gets its gradient.
        dropout_p: probability of dropping a weight.
        q_offset: queries may be fewer than keys: query i is then that of token q_offset + i (of
            a pattern that strides its queries, its query q_offset + i). -1: they are the last.
            Keys that none of them reads are not touched.
        impl: "reference", "dense", "tiled", "native", "triton" or "flex"; None picks the fastest
            that fits (see `explain`; FOVEAL_IMPL in the environment names one to prefer). A named
            implementation never falls back: it raises and says what it lacks.
        return_lse: return also the log-sum-exp of the logits, which `merge` needs.
        sinks: (heads,) logits, learned as a rule, of one more key of each head that every query
            reads and that has no value: weights then sum to less than one. Any floating dtype;
            the log-sum-exp includes it, and is the sink itself for a query without keys. Where
            results are merged, pass the sinks to one of them. Dropout never drops it.
        softcap: a positive number c bounds the logits: c tanh(x / c) takes the place of
            x = scale q k^T (Gemma 2). What is added to logits, a bias, is added afterwards, and so
            are masks and sinks, as in flash-attention.

    Returns:
        out (batch, heads, n_queries, head_dim_v) in the dtype of q, and with `return_lse` the
        log-sum-exp (batch, heads, n_queries) in float32 (float64 for float64), -inf for a query
        without keys. Both are differentiable.

    Raises:
        TypeError: pattern is not a Pattern, or what must be a tensor or a number is none.
        ValueError: shapes, dtypes or options do not fit; impl cannot do this call.

    Example:
        >>> import torch, foveal
        >>> from foveal import patterns as P
        >>> q = k = v = torch.randn(1, 8, 1000, 64)
        >>> foveal.attend(q, k, v, P.SlidingWindow(128)).shape
        torch.Size([1, 8, 1000, 64])
    """
    if type(q_offset) is not int or q_offset != 0:
        options = {"scale": scale, "dropout_p": dropout_p, "impl": impl, "return_lse": return_lse}
        options |= {"sinks": sinks, "softcap": softcap}
        return _at_offset((q, k, v, pattern), bias, key_mask, q_offset, options)
    key = None
    if bias is sinks is softcap is None and not is_compiling():
        key = known.key_of(q, k, v, pattern, key_mask, scale, dropout_p, impl, return_lse)
        if key is not None:
            run = known.find_by_key(key, q, k, v, pattern, key_mask, impl)
            if run is not None:
                factor: Any = q.shape[3] ** -0.5 if scale is None else scale
                return run(q, k, v, pattern, key_mask, factor)
    device = q.device.type if isinstance(q, Tensor) else "cpu"
    compiling = is_compiling()
    lowers = autocast.is_on(device)
    if lowers or (not compiling and is_stray(q)):
        return (_without_autocast if lowers else _in_its_mode)(
            (q, k, v, pattern),
            bias=bias,
            key_mask=key_mask,
            scale=scale,
            dropout_p=dropout_p,
            impl=impl,
            return_lse=return_lse,
            sinks=sinks,
            softcap=softcap,
        )
    if not compiling:
        check_tensors(q, k, v, pattern, bias, key_mask, dropout_p, return_lse, sinks, scale)
        softcap = as_softcap(softcap)
    else:
        check_context()
        if is_lowering():
            rest = (scale, sinks, softcap, return_lse, dropout_p)
            found = attend_lowered(q, k, v, pattern, bias, key_mask, *rest)
            return found if return_lse else found[0]  # type: ignore[return-value]
    if isinstance(bias, tuple):
        bias = settle(bias, q, k, pattern)
    work = work_of(q, k, v, pattern, bias, key_mask, dropout_p, return_lse, scale, sinks, softcap)
    if offset.wants_plan(work, impl):
        options = {"scale": scale, "dropout_p": dropout_p, "impl": impl, "return_lse": return_lse}
        options |= {"sinks": sinks, "softcap": softcap}
        return _at_offset((q, k, v, pattern), bias, key_mask, 0, options)
    if dropout_p and not _is_placed(dropout_p) and by_example.wants_rows(work.q[0]):
        options = {"dropout_p": dropout_p, "return_lse": return_lse}
        options |= {"sinks": sinks, "softcap": softcap}
        return _by_rows((q, k, v, bias, scale), key_mask, work, impl, options)
    named = impl is not None
    if impl is None:
        impl = pick(work).name
    else:
        if not compiling:
            check_sizes(work)
        _check_impl(impl, work)
    if scale is None:
        scale = work.q[3] ** -0.5
    elif isinstance(scale, Tensor):
        q, scale = fold_scale(q, scale), 1.0
    elif not compiling:
        scale = as_scale(scale)
    assert not isinstance(scale, Tensor)
    if isinstance(bias, Tensor) and bias.ndim < 4:
        bias = bias[(None,) * (4 - bias.ndim)]
    chosen, call = IMPLEMENTATIONS[impl], Call(work, q, k, v, bias, key_mask, scale, dropout_p)
    if sinks is not None or softcap is not None:
        call = call._replace(sinks=sinks, softcap=softcap)
    if key is not None and (named or is_settled(work, impl)):
        known.keep(key, chosen, work)
    out, lse = chosen.run(call)
    return (out, lse) if return_lse else out  # type: ignore[return-value]


def _is_placed(dropout_p: float) -> bool:
    """Whether its draws go by place, and so by example already."""
    return isinstance(dropout_p, ByPlace) and dropout_p.seed is not None


def _by_rows(
    tensors: tuple[Any, ...], key_mask: Tensor | None, work: Work, impl: str | None, options: Any
) -> Any:
    """The call in a training, which drops weights of an example whatever else is computed.

    So the implementation, each of which draws otherwise, does not depend on the batch either.
    """
    check_sizes(work)
    impl = pick(work.of_batch(USUAL_BATCH)).name if impl is None else impl
    count, call = work.q[0], cast(Any, attend)
    size = dense.rows_at_once(work) if impl == "dense" else count
    found = []
    for number, apart in enumerate(by_example.apart(count, size)):
        first = number * size
        q, k, v, bias, scale = (_rows_of(x, first, size) for x in tensors)
        mask = None if key_mask is None else key_mask[first : first + size]
        given = {"bias": bias, "scale": scale, "key_mask": mask, "impl": impl, **options}
        with apart:
            found.append(call(q, k, v, work.pattern, **given))
    if len(found) == 1:
        return found[0]
    if options["return_lse"]:
        return tuple(torch.cat(part) for part in zip(*found, strict=True))
    return torch.cat(found)


def _rows_of(x: Any, first: int, size: int) -> Any:
    """Some of what has a batch, (batch, heads, ...); anything else is that of all."""
    if isinstance(x, WindowBias):
        return WindowBias(*(_rows_of(part, first, size) for part in x))
    if not isinstance(x, Tensor) or x.ndim < 4 or x.shape[0] <= size:
        return x
    return x[first : first + size]


def _at_offset(
    tensors: tuple[Any, ...],
    bias: Bias | None,
    key_mask: Tensor | None,
    q_offset: Any,
    options: dict[str, Any],
) -> Any:
    """The call of queries that are some of those of the pattern."""
    q, k, v, pattern = tensors
    if not is_compiling():
        others = [options[name] for name in ("dropout_p", "return_lse", "sinks", "scale")]
        check_tensors(q, k, v, pattern, bias, key_mask, *others)
    k, v, pattern, bias, key_mask = offset.applied(q, k, v, pattern, bias, key_mask, q_offset)
    return attend(q, k, v, pattern, bias=bias, key_mask=key_mask, **options)


def _without_autocast(tensors: tuple[Any, ...], **options: Any) -> Any:
    """The call in the dtype of autocast, whose arithmetic then is ours to choose."""
    q, k, v, pattern = tensors
    q, k, v = autocast.lowered(q, k, v)
    with autocast.off(q.device.type):
        return attend(q, k, v, pattern, **options)


def _in_its_mode(tensors: tuple[Any, ...], **options: Any) -> Any:
    """The call in the mode of its fake tensors, which mix with no mask that is kept."""
    with in_mode_of(tensors[0]):
        return attend(*tensors, **options)


def _check_impl(impl: str, work: Work) -> None:
    if impl not in IMPLS:
        hint = suggest(impl, IMPLS, "")
        raise ValueError(
            f"impl must be one of {', '.join(IMPLS)} or None, got {impl=!r}. {hint}".strip()
        )
    if reason := IMPLEMENTATIONS[impl].refuses(work):
        others = (
            name
            for name in ("tiled", "dense", "reference")
            if name != impl and IMPLEMENTATIONS[name].refuses(work) is None
        )
        advice = " or ".join(f"impl={name!r}" for name in others)
        raise ValueError(f"impl={impl!r} cannot do this call: {reason}; use {advice}.")
