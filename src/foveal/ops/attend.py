"""attend(): exact attention under any pattern."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal, overload

import torch
from torch import Tensor

from foveal.ops import flex, native, triton
from foveal.ops.bias import WindowBias
from foveal.ops.checks import check_inputs
from foveal.ops.choose import IMPLS, choose, choose_windowed, forced
from foveal.ops.pyramid import PyramidBias, pyramid_attend, pyramid_reference
from foveal.ops.run import RUN, Call, lacks
from foveal.ops.tiled_op import tiled_attend
from foveal.patterns import Full, Halo, Pattern, Pyramid
from foveal.patterns.subclasses import is_a


@overload
def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    *,
    bias: Tensor | WindowBias | PyramidBias | None = None,
    key_mask: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    impl: str | None = None,
    return_lse: Literal[False] = False,
) -> Tensor: ...
@overload
def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    *,
    bias: Tensor | WindowBias | PyramidBias | None = None,
    key_mask: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    impl: str | None = None,
    return_lse: Literal[True],
) -> tuple[Tensor, Tensor]: ...
def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    *,
    bias: Tensor | WindowBias | PyramidBias | None = None,
    key_mask: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    impl: str | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Softmax attention in which each query reads only the keys that the pattern allows.

    Args:
        q: (batch, heads, n_queries, head_dim).
        k: (batch, kv_heads, n_keys, head_dim); kv_heads divides heads (grouped-query attention).
        v: (batch, kv_heads, n_keys, head_dim_v).
        pattern: who attends to whom; positions count from 0 in both queries and keys.
        bias: added to the logits: floating, broadcastable to (batch, heads, n_queries, n_keys), or
            a WindowBias (Halo) or PyramidBias (Pyramid), which are computed inside the tiles.
        key_mask: (batch, n_keys) bool, True = real key. A query left without any key gives
            zeros, never NaN, and passes no gradient. A Pyramid with coarse queries, where there
            are as many as keys, leaves the masked tokens out of its mean queries too.
        scale: factor of q k^T; head_dim ** -0.5 when None.
        dropout_p: probability of dropping a weight.
        impl: "reference", "dense", "tiled", "native", "triton" or "flex"; None picks the fastest
            that fits (see `explain`; FOVEAL_IMPL in the environment names one to prefer). A named
            implementation never falls back: it raises and says what it lacks.
        return_lse: return also the log-sum-exp of the logits, which `merge` needs.

    Returns:
        out (batch, heads, n_queries, head_dim_v) in the dtype of q, and with `return_lse` the
        log-sum-exp (batch, heads, n_queries) in float32 (float64 for float64), -inf for a query
        without keys. Both are differentiable.

    Raises:
        TypeError: pattern is not a Pattern.
        ValueError: shapes, dtypes or options do not fit; impl cannot do this call.

    Example:
        >>> import torch, foveal
        >>> from foveal import patterns as P
        >>> q = k = v = torch.randn(1, 8, 1000, 64)
        >>> foveal.attend(q, k, v, P.SlidingWindow(128)).shape
        torch.Size([1, 8, 1000, 64])
    """
    q, k, v = _autocast(q, k, v)
    if not torch.compiler.is_compiling():
        check_inputs(q, k, v, pattern, bias, key_mask, dropout_p)
        pattern.check_length(max(q.shape[2], k.shape[2]))
    if impl is not None and impl not in IMPLS:
        raise ValueError(f"impl must be one of {', '.join(IMPLS)} or None, got {impl=!r}.")
    if is_a(pattern, Pyramid) or isinstance(bias, PyramidBias):
        found = _pyramid(q, k, v, pattern, bias, key_mask, scale, dropout_p, impl)
        return found if return_lse else found[0]
    if isinstance(bias, Tensor) and bias.ndim < 4:
        bias = bias[(None,) * (4 - bias.ndim)]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    call = Call(q, k, v, pattern, bias, key_mask, scale, dropout_p, return_lse)
    if impl is None:
        impl = _pick(call)
    elif reason := lacks(impl, call):
        raise ValueError(f"impl={impl!r} cannot do this call: {reason}; {_advice(impl)}.")
    out, lse = RUN[impl](call)
    return (out, lse) if return_lse else out  # type: ignore[return-value]


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(t.to(dtype) if t.dtype == torch.float32 else t for t in tensors)


def _advice(impl: str) -> str:
    others = {"dense": ("tiled", "reference"), "tiled": ("dense",)}.get(impl, ("tiled",))
    return "use " + " or ".join(f"impl={other!r}" for other in others)


def _pick(call: Call) -> str:
    if (wanted := forced()) and not lacks(wanted, call):
        return wanted
    if not call.square:
        return "reference" if call.return_lse else "dense"
    q, k, v = call[:3]
    has_native = native.why_not(q.device.type, q.dtype) is None
    impl = _fastest(call, has_native)
    if impl == "native" and not native.ready():  # the compiler failed
        has_native = False
        impl = _fastest(call, has_native)
    if lacks(impl, call) or (impl == "flex" and not _flex_serves(q, v, call.pattern, k.shape[2])):
        return "native" if has_native and native.ready() else "tiled"
    return impl


def _flex_serves(q: Tensor, v: Tensor, pattern: Pattern, length: int) -> bool:
    """Whether to take FlexAttention unasked: on CUDA, where it has proved right."""
    return flex.trusted(pattern, length, (q.shape[3], v.shape[3]), q.dtype, str(q.device))


def _fastest(call: Call, has_native: bool) -> str:
    q, pattern = call.q, call.pattern
    if isinstance(call.bias, WindowBias):
        return choose_windowed(has_native, _triton_serves(call))[0]
    if torch.compiler.is_compiling():  # lengths may be symbols: the operator plans at run time
        if is_a(pattern, Full) and not call.return_lse:
            return "dense"
        # an exported program must run where there is no compiler
        return "native" if has_native and not torch.compiler.is_exporting() else "tiled"
    heads = q.shape[0] * q.shape[1]
    length, device = call.k.shape[2], q.device.type
    impl, _ = choose(pattern, length, device, heads, q.shape[3], q.dtype, has_native)
    return impl


def _triton_serves(call: Call) -> bool:
    """Whether to take the Triton kernels unasked: on CUDA, where they have proved right."""
    q, pattern = call.q, call.pattern
    if q.device.type != "cuda" or torch.compiler.is_exporting() or lacks("triton", call):
        return False
    assert isinstance(pattern, Halo)
    return triton.trusted(
        pattern.block,
        pattern.halo,
        pattern.query_stride,
        q.shape[3],
        call.v.shape[3],
        q.dtype,
        str(q.device),
    )


def _pyramid(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    bias: Tensor | WindowBias | PyramidBias | None,
    key_mask: Tensor | None,
    scale: float | None,
    dropout_p: float,
    impl: str | None,
) -> tuple[Tensor, Tensor]:
    """All levels of a Pyramid: its pairs meet as means of clusters, not one by one."""
    if (
        not isinstance(pattern, Pyramid)
        or not is_a(pattern, Pyramid)
        or not isinstance(bias, PyramidBias | None)
    ):
        raise ValueError(
            "a Pyramid takes a PyramidBias or none, and nothing else takes one; got "
            f"bias={type(bias).__name__} with {pattern}."
        )
    if impl is None:
        impl = _pyramid_impl(q, k, v, pattern, bias, dropout_p)
    elif reason := _pyramid_lacks(impl, q, k, v, bias, dropout_p):
        raise ValueError(
            f"impl={impl!r} cannot do this call: {reason}; use impl='tiled' or impl='reference'."
        )
    run: Callable[..., tuple[Tensor, Tensor]] = pyramid_reference
    if impl != "reference":
        run = functools.partial(pyramid_attend, engine=ENGINES[impl])
    query_mask = key_mask if q.shape[2] == k.shape[2] else None
    return run(
        q,
        k,
        v,
        pattern,
        bias=bias,
        key_mask=key_mask,
        query_mask=query_mask,
        scale=scale,
        dropout_p=dropout_p,
    )


ENGINES = {
    "tiled": tiled_attend,
    "native": native.native_attend,
    "flex": flex.flex_attend,
}
"""What computes the tile plan of a Pyramid."""


def _pyramid_impl(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pyramid,
    bias: PyramidBias | None,
    dropout_p: float,
) -> str:
    def can(impl: str) -> bool:
        return not _pyramid_lacks(impl, q, k, v, bias, dropout_p)

    wanted = forced()
    if wanted and can(wanted):
        return wanted
    if torch.compiler.is_exporting():  # an exported program must run where there is no compiler
        return "tiled"
    if can("native") and native.ready():
        return "native"
    on_cuda = q.device.type == "cuda" and not torch.compiler.is_compiling()
    if on_cuda and can("flex") and _flex_serves(q, v, pattern, k.shape[2]):
        return "flex"
    return "tiled"


def _pyramid_lacks(
    impl: str, q: Tensor, k: Tensor, v: Tensor, bias: PyramidBias | None, dropout_p: float
) -> str | None:
    """The reason why an implementation cannot do a call with a Pyramid, or None."""
    if impl == "tiled" or (impl == "reference" and not torch.compiler.is_compiling()):
        return None
    if impl == "reference":
        return "its definition asks for values, which the compiler does not have"
    if impl == "flex":
        return flex.why_not(q, k, v, None if bias is None else bias.table, dropout_p)
    if impl != "native":
        return "it cannot pool keys into the levels of a Pyramid"
    if bias is not None:
        return "it has no tables of relative positions"
    return native.why_not(q.device.type, q.dtype)
