"""The implementations of attend() behind one signature, and what each of them lacks."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from foveal.common.memo import remember
from foveal.ops import flex, native, triton
from foveal.ops.bias import WindowBias
from foveal.ops.fused import fused_attention
from foveal.ops.operator import Attention
from foveal.ops.reference import masked_attention
from foveal.ops.tiled_op import tiled_attend
from foveal.patterns import Full, Halo, Pattern
from foveal.patterns.subclasses import is_a


class Call(NamedTuple):
    """One call of attend(), with its defaults filled in: the arguments of an `Attention` in order.

    `square`: there are as many queries as the pattern has for these keys.
    """

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
    q, k, v = call.q, call.k, call.v
    options: dict[str, Any] = {
        "dropout_p": call.dropout_p,
        "scale": call.scale,
        "enable_gqa": q.shape[1] != k.shape[1],
    }
    plain = call.bias is None and call.key_mask is None
    if plain and call.square and call.pattern.always_reads and _short_bfloat16(call):
        out = _matmul_attention(call)
    elif plain and is_a(call.pattern, Full) and (call.square or not call.pattern.causal):
        out = fused_attention(q, k, v, is_causal=call.pattern.causal, **options)
    elif plain and call.square and call.pattern.always_reads:
        out = fused_attention(q, k, v, attn_mask=call.mask(), **options)
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
    out = fused_attention(call.q, call.k, call.v, attn_mask=mask, **options)
    return out.masked_fill(~alive, 0.0)


def _tiled(call: Call) -> Result:
    return _planned(call, tiled_attend)


def _planned(call: Call, engine: Attention) -> Result:
    """A call of an engine that works from a tile plan."""
    if call.pattern.heads is not None:
        return _by_head(call, engine)
    return engine(*call)


def _by_head(call: Call, engine: Attention) -> Result:
    """Heads with layouts of their own, one after the other."""
    repeats = call.q.shape[1] // call.k.shape[1]
    parts = []
    for head, pattern in enumerate(call.pattern.per_head()):
        own = slice(head // repeats, head // repeats + 1)
        bias = call.bias
        if isinstance(bias, Tensor) and bias.shape[1] > 1:
            bias = bias[:, head : head + 1]
        q, k, v = call.q[:, head : head + 1], call.k[:, own], call.v[:, own]
        parts.append(engine(*call._replace(q=q, k=k, v=v, pattern=pattern, bias=bias)))
    outs, lses = zip(*parts, strict=True)
    return torch.cat(outs, 1), torch.cat(lses, 1)


def _native(call: Call) -> Result:
    return _planned(call, native.native_attend)


def _triton(call: Call) -> Result:
    return _planned(call, triton.triton_attend)


def _flex(call: Call) -> Result:
    return flex.flex_attend(*call)


def lacks(impl: str, call: Call) -> str | None:
    """The reason why an implementation cannot do a call, or None when it can."""
    if impl == "dense":
        return "it returns no log-sum-exp, got return_lse=True" if call.return_lse else None
    if impl == "reference":
        return None
    if not call.square:
        return f"it needs the queries that the pattern has for its keys, got {call.lengths}"
    if impl == "native":
        return native.why_not(call.q.device.type, call.q.dtype)
    if impl == "triton":
        q, head_dim = call.q, max(call.q.shape[3], call.v.shape[3])
        return triton.why_not(
            q.device.type, q.dtype, call.pattern, head_dim, call.bias, call.dropout_p
        )
    if impl == "flex":
        return flex.why_not(call.q, call.k, call.v, call.bias, call.dropout_p)
    return None


RUN = {
    "reference": _reference,
    "dense": _dense,
    "tiled": _tiled,
    "native": _native,
    "triton": _triton,
    "flex": _flex,
}


def _mask(pattern: Pattern, n_queries: int, n_keys: int, device: torch.device) -> Tensor:
    if torch.compiler.is_compiling():
        return pattern.mask(n_queries, n_keys, device)
    return _cached_mask(pattern, n_queries, n_keys, str(device))


@remember(entries=32, mebibytes=256)
def _cached_mask(pattern: Pattern, n_queries: int, n_keys: int, device: str) -> Tensor:
    return pattern.mask(n_queries, n_keys, device)
