"""A call that is lowered, and the softmax over keys that were gathered for blocks of queries.

Legend of shapes: B batch, H heads, N queries, M keys, E features; of blocks: T blocks, Q queries
and K keys of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from foveal.ops.bias import TableBias, WindowBias, finite, window_place
from foveal.ops.logits import capped, with_sink_key, with_sinks
from foveal.ops.lowered.state import has_symbols, planned, without_choice
from foveal.ops.rows_without_keys import open_dead_rows, softmax_rows
from foveal.ops.table import Alibi
from foveal.patterns import Halo, Pattern

Part = tuple[Tensor, Tensor | None]
"""out and, where it is asked for, the log-sum-exp."""


class Lowered(NamedTuple):
    """One call; shapes as in `attend`, but keys and values have a head for each of the queries.

    q is scaled where scale is 1. unread: a key may be there that no query reads, whose numbers,
    NaN too, must reach no result.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    pattern: Pattern
    bias: Tensor | WindowBias | TableBias | Alibi | None = None
    key_mask: Tensor | None = None
    scale: float = 1.0
    sinks: Tensor | None = None
    softcap: float | None = None
    lse: bool = False
    unread: bool = True

    @property
    def may_be_dead(self) -> bool:
        """Whether a query may be left without a key."""
        return (
            self.key_mask is not None
            or not self.pattern.always_reads
            or isinstance(self.bias, Tensor)
        )


def rows(x: Tensor, index: Tensor) -> Tensor:
    """x (B, H, N, E) at index (T, Q) -> (B, H, T, Q, E)."""
    return x.index_select(2, index.flatten()).unflatten(2, (index.shape[0], index.shape[1]))


def folded(x: Tensor) -> Tensor:
    """Blocks as examples: (B, H, T, Q, E) -> (B T, H, Q, E).

    A copy: whether a view would do depends on numbers that a trace with symbols does not have.
    """
    x = x.transpose(1, 2).clone(memory_format=torch.contiguous_format)
    return x.flatten(0, 1)


def unfolded(x: Tensor, like: Tensor) -> Tensor:
    """(B T, H, Q, ...) -> (B, H, T Q, ...), for a block of queries `like` (B, H, T, Q, E)."""
    x = x.unflatten(0, (like.shape[0], like.shape[2])).transpose(1, 2)
    return x.clone(memory_format=torch.contiguous_format).flatten(2, 3)


def allowed(call: Lowered, q_idx: Tensor, k_idx: Tensor, exists: Tensor | None) -> Tensor | None:
    """Who reads whom among q_idx (T, Q) and k_idx (T, K): (B or 1, H or 1, T, Q, K) bool.

    exists: (T, K) bool, the keys that are some; None where all are.
    """
    found = None
    if not call.pattern.reads_all:
        found = _rule(call.pattern, k_idx.device)(q_idx[:, :, None], k_idx[:, None, :])
        found = found[None, None] if found.ndim == 3 else found[None]
    if exists is not None:
        there = exists[None, None, :, None]
        found = there if found is None else found & there
    if call.key_mask is not None:
        real = call.key_mask[:, k_idx][:, None, :, None]
        found = real if found is None else found & real
    return found


def _rule(pattern: Pattern, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """`allows`, with the tables that it looks things up in made outside of the trace."""
    if has_symbols(pattern):
        return pattern.rule(device)
    return planned(("rule", pattern, str(device)), lambda: pattern.rule(device))


def gained(call: Lowered, q_idx: Tensor, k_idx: Tensor) -> Tensor | None:
    """What the logits of q_idx (T, Q) and k_idx (T, K) gain: (B or 1, H or 1, T, Q, K)."""
    bias = call.bias
    q_at, k_at = q_idx[:, :, None], k_idx[:, None, :]
    if bias is None:
        return None
    if isinstance(bias, WindowBias):
        return _windowed(call, bias, q_at, k_at)
    if isinstance(bias, TableBias | Alibi):
        return bias.at(call.pattern, q_at, k_at)[None]
    i = q_at if bias.shape[2] != 1 else torch.zeros_like(q_at)
    j = k_at if bias.shape[3] != 1 else torch.zeros_like(k_at)
    return bias[:, :, i, j]


def _windowed(call: Lowered, bias: WindowBias, q_at: Tensor, k_at: Tensor) -> Tensor:
    pattern = call.pattern
    assert isinstance(pattern, Halo)
    places = zip(bias, pattern.query_coordinates(q_at), pattern.coordinates(k_at), strict=True)
    total: Tensor | None = None
    for axis, (values, q, k) in enumerate(places):
        place = window_place(pattern, q, k, axis).clamp(0, pattern.window[axis] - 1)
        mine = rows(values, q_at[:, :, 0])
        part = mine.gather(-1, place.expand(*values.shape[:2], *place.shape))
        total = part if total is None else total + part
    assert total is not None
    return total


def softmax(
    call: Lowered,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    dead: bool,
) -> Part:
    """Attention of blocks of queries to the keys that were gathered for each.

    Args:
        q: (B, H, T, Q, E).
        k, v: (B, H, T, K, E).
        mask: (B or 1, H or 1, T, Q, K) bool, True = attend; None = all.
        bias: what the logits gain, (B or 1, H or 1, T, Q, K).
        dead: a query may have no key; it then gets zeros.

    Returns:
        out (B, H, T Q, E), and the log-sum-exp (B, H, T Q) if the call asks for it.
    """
    dtype, like = q.dtype, q
    if bias is not None:  # its digits are those of the logits
        wide = torch.promote_types(dtype, torch.float32)
        q, k, v = q.to(wide), k.to(wide), v.to(wide)
        bias = finite(bias, wide)
        if call.bias is not None:
            unread = bias == -torch.inf
            mask = ~unread if mask is None else mask & ~unread
    if call.unread and mask is not None:
        read = mask.any(3)[..., None]
        k, v = k.masked_fill(~read, 0.0), v.masked_fill(~read, 0.0)
    q, k, v = folded(q), folded(k), folded(v)
    mask, bias = (None if x is None else _folded_mask(x, like.shape[0]) for x in (mask, bias))
    if call.lse or call.softcap is not None:
        out, lse = _written_out(call, q, k, v, mask, bias)
        told = unfolded(lse[..., None], like)[..., 0] if call.lse else None
        return unfolded(out, like).to(dtype), told
    none = None
    if mask is not None and dead:  # such a row reads all keys instead, and is thrown away
        mask, none = open_dead_rows(mask)
    out = _fused(call, q, k, v, mask if bias is None else _added(mask, bias))
    out = out if none is None else out.masked_fill(none, 0.0)
    return unfolded(out, like).to(dtype), None


def _folded_mask(x: Tensor, batch: int) -> Tensor:
    """(B or 1, H or 1, T, Q, K) -> (B T, H or 1, Q, K)"""
    return folded(x.expand(batch, *x.shape[1:]))


def _added(mask: Tensor | None, bias: Tensor) -> Tensor:
    return bias if mask is None else bias.masked_fill(~mask, -torch.inf)


def _fused(call: Lowered, q: Tensor, k: Tensor, v: Tensor, added: Tensor | None) -> Tensor:
    scale = call.scale
    if call.sinks is not None:
        biased = call.bias is not None
        q, k, v, added = with_sink_key(q, k, v, added, scale, call.sinks, biased)
        scale = 1.0
    dim, width = q.shape[-1], v.shape[-1]
    if dim < width:  # fused kernels want them equal
        q, k = pad(q, (0, width - dim)), pad(k, (0, width - dim))
    elif width < dim:
        v = pad(v, (0, dim - width))
    with without_choice(q.shape[0]):
        out = scaled_dot_product_attention(q, k, v, added, scale=scale)
    return out[..., :width] if width < dim else out


def _written_out(
    call: Lowered, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """What no fused kernel tells: every logit in float32 at least."""
    wide = torch.promote_types(q.dtype, torch.float32)
    logits = capped(((q * call.scale) @ k.mT).to(wide), call.softcap)
    if bias is not None:
        logits = logits + bias
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf)
    weights, lse = softmax_rows(logits)
    return with_sinks(weights.to(v.dtype) @ v, lse, call.sinks)
