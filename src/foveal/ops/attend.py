"""attend(): exact attention under any pattern."""

from __future__ import annotations

import functools
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from foveal.ops import flex
from foveal.ops.bias import WindowBias
from foveal.ops.checks import check_inputs
from foveal.ops.choose import IMPLS, choose
from foveal.ops.pyramid import PyramidBias, pyramid_attend, pyramid_reference
from foveal.ops.reference import masked_attention
from foveal.ops.tiled_op import tiled_attend
from foveal.patterns import Full, Halo, Pattern, Pyramid


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
        impl: "reference", "dense", "tiled" or "flex"; None picks the fastest that fits (see
            `explain`). A named implementation never falls back: it raises and says what it lacks.
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
    if isinstance(pattern, Pyramid) or isinstance(bias, PyramidBias):
        found = _pyramid(q, k, v, pattern, bias, key_mask, scale, dropout_p, impl)
        return found if return_lse else found[0]
    if isinstance(bias, Tensor) and bias.ndim < 4:
        bias = bias[(None,) * (4 - bias.ndim)]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    call = Call(q, k, v, pattern, bias, key_mask, scale, dropout_p, return_lse)
    if impl is None:
        impl = _pick(call)
    out, lse = _RUN[impl](call)
    return (out, lse) if return_lse else out  # type: ignore[return-value]


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(t.to(dtype) if t.dtype == torch.float32 else t for t in tensors)


def _pick(call: Call) -> str:
    q = call.q
    if not call.square:
        return "reference" if call.return_lse else "dense"
    if isinstance(call.bias, WindowBias):  # dense would have to expand it
        return "tiled"
    if torch.compiler.is_compiling():  # lengths may be symbols: the operator plans at run time
        return "dense" if isinstance(call.pattern, Full) and not call.return_lse else "tiled"
    impl, _ = choose(
        call.pattern, call.k.shape[2], q.device.type, q.shape[0] * q.shape[1], q.shape[3]
    )
    if impl == "flex":
        biased = call.bias is not None and call.bias.requires_grad
        if biased or flex.why_not(q, call.k, call.v, call.dropout_p):
            return "tiled"
    return "tiled" if impl == "dense" and call.return_lse else impl


# -- the implementations behind one signature ---------------------------------------------------


class Call(NamedTuple):
    """One call of attend(), with its defaults filled in; `square`: as many queries as fit."""

    q: Tensor
    k: Tensor
    v: Tensor
    pattern: Pattern
    bias: Tensor | WindowBias | None
    key_mask: Tensor | None
    scale: float
    dropout_p: float
    return_lse: bool

    @property
    def square(self) -> bool:
        return self.q.shape[2] == self.pattern.num_queries(self.k.shape[2])

    @property
    def lengths(self) -> str:
        return f"{self.q.shape[2]} queries and {self.k.shape[2]} keys"

    def dense_bias(self) -> Tensor | None:
        if isinstance(self.bias, WindowBias):
            assert isinstance(self.pattern, Halo)
            return self.bias.dense(self.pattern)
        return self.bias

    def mask(self) -> Tensor:
        return _mask(self.pattern, self.q.shape[2], self.k.shape[2], self.q.device)


Result = tuple[Tensor, Tensor | None]


def _reference(call: Call) -> Result:
    return masked_attention(
        call.q,
        call.k,
        call.v,
        call.mask(),
        bias=call.dense_bias(),
        key_mask=call.key_mask,
        scale=call.scale,
        dropout_p=call.dropout_p,
    )


def _dense(call: Call) -> Result:
    if call.return_lse:
        raise ValueError(
            "impl='dense' cannot return the log-sum-exp, got return_lse=True; use impl='tiled' or "
            "impl='reference'."
        )
    q, k, v = call.q, call.k, call.v
    options: dict[str, Any] = {
        "dropout_p": call.dropout_p,
        "scale": call.scale,
        "enable_gqa": q.shape[1] != k.shape[1],
    }
    plain = call.bias is None and call.key_mask is None
    if plain and call.square and call.pattern.always_reads and _short_bfloat16(call):
        out = _matmul_attention(call)
    elif plain and isinstance(call.pattern, Full) and (call.square or not call.pattern.causal):
        out = scaled_dot_product_attention(q, k, v, is_causal=call.pattern.causal, **options)
    elif plain and call.square and call.pattern.always_reads:
        out = scaled_dot_product_attention(q, k, v, attn_mask=call.mask(), **options)
    else:
        out = _dense_masked(call, options)
    return out, None


SHORT = 512
"""Up to this length bfloat16 products of the whole matrix beat the CPU's fused kernel."""


def _short_bfloat16(call: Call) -> bool:
    q = call.q
    return (
        q.device.type == "cpu"
        and q.dtype == torch.bfloat16
        and q.shape[1] == call.k.shape[1]
        and q.shape[2] <= SHORT
        and not call.dropout_p
    )


def _matmul_attention(call: Call) -> Tensor:
    """Dense attention by two plain products; see SHORT."""
    q, k, v = (x.flatten(0, 1) for x in (call.q, call.k, call.v))
    forbidden = torch.zeros((), dtype=q.dtype)
    if call.pattern != Full():
        forbidden = _additive_mask(call.pattern, q.shape[1], k.shape[1])
    logits = torch.baddbmm(forbidden, q, k.mT, alpha=call.scale)
    return torch.bmm(logits.softmax(-1), v).unflatten(0, call.q.shape[:2])


def _additive_mask(pattern: Pattern, n_queries: int, n_keys: int) -> Tensor:
    mask = _mask(pattern, n_queries, n_keys, torch.device("cpu"))
    return torch.where(mask, 0.0, -torch.inf).to(torch.bfloat16)


def _dense_masked(call: Call, options: dict) -> Tensor:
    """Dense attention in which some query may have no key."""
    mask = call.mask()
    if call.key_mask is not None:
        mask = mask & call.key_mask[:, None, None, :]
    alive = mask.any(-1, keepdim=True)
    # a row without keys reads all of them instead, and its output is discarded
    mask = mask | ~alive
    bias = call.dense_bias()
    if bias is not None:
        alive = alive & ((bias > -torch.inf) & mask).any(-1, keepdim=True)
        mask = torch.where(mask, bias.to(call.q.dtype).clamp(min=-1e30), -torch.inf)
    out = scaled_dot_product_attention(call.q, call.k, call.v, attn_mask=mask, **options)
    return out.masked_fill(~alive, 0.0)


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
    if not isinstance(pattern, Pyramid) or not isinstance(bias, PyramidBias | None):
        raise ValueError(
            "a Pyramid takes a PyramidBias or none, and nothing else takes one; got "
            f"bias={type(bias).__name__} with {pattern}."
        )
    if impl in ("dense", "flex"):
        raise ValueError(
            f"impl={impl!r} cannot pool keys into the levels of a Pyramid; use impl='tiled' or "
            "impl='reference'."
        )
    run = pyramid_reference if impl == "reference" else pyramid_attend
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


def _tiled(call: Call) -> Result:
    if not call.square:
        raise ValueError(
            "impl='tiled' needs the number of queries that the pattern has for its keys, got "
            f"{call.lengths}; use impl='dense'."
        )
    if call.pattern.heads is not None:
        return _tiled_by_head(call)
    q, k, v, pattern, bias, key_mask, scale, dropout_p, _ = call
    return tiled_attend(q, k, v, pattern, bias, key_mask, scale, dropout_p)


def _tiled_by_head(call: Call) -> Result:
    """Heads with layouts of their own, one after the other."""
    repeats = call.q.shape[1] // call.k.shape[1]
    parts = []
    for head, pattern in enumerate(call.pattern.per_head()):
        own = slice(head // repeats, head // repeats + 1)
        bias = call.bias
        if isinstance(bias, Tensor) and bias.shape[1] > 1:
            bias = bias[:, head : head + 1]
        q, k, v = call.q[:, head : head + 1], call.k[:, own], call.v[:, own]
        parts.append(
            tiled_attend(q, k, v, pattern, bias, call.key_mask, call.scale, call.dropout_p)
        )
    outs, lses = zip(*parts, strict=True)
    return torch.cat(outs, 1), torch.cat(lses, 1)


def _flex(call: Call) -> Result:
    lacks = flex.why_not(call.q, call.k, call.v, call.dropout_p)
    if not call.square:
        lacks = f"it needs as many queries as keys, got {call.lengths}"
    if lacks:
        raise ValueError(f"impl='flex' cannot do this call: {lacks}; use impl='tiled'.")
    return flex.flex_attend(
        call.q, call.k, call.v, call.pattern, call.dense_bias(), call.key_mask, call.scale
    )


_RUN = {"reference": _reference, "dense": _dense, "tiled": _tiled, "flex": _flex}


def _mask(pattern: Pattern, n_queries: int, n_keys: int, device: torch.device) -> Tensor:
    if torch.compiler.is_compiling():
        return pattern.mask(n_queries, n_keys, device)
    return _cached_mask(pattern, n_queries, n_keys, str(device))


@functools.lru_cache(maxsize=32)
def _cached_mask(pattern: Pattern, n_queries: int, n_keys: int, device: str) -> Tensor:
    return pattern.mask(n_queries, n_keys, device)
