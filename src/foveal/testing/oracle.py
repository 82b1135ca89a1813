"""Attention in float64 by its textbook formula: what every implementation is held to."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from foveal.patterns.base import Pattern


def dense_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | Pattern | None = None,
    bias: Tensor | None = None,
    key_mask: Tensor | None = None,
    scale: float | None = None,
    sinks: Tensor | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Masked softmax attention, computed and returned in float64, with gradients.

    Args:
        q: (batch, heads, queries, head_dim).
        k: (batch, kv_heads, keys, head_dim); each key head serves heads / kv_heads query heads.
        v: (batch, kv_heads, keys, head_dim_v).
        mask: bool, True = attend; (queries, keys) or anything that broadcasts with
            (batch, heads, queries, keys). A pattern stands for its mask.
        bias: added to the scaled scores; broadcasts with (batch, heads, queries, keys).
        key_mask: (batch, keys) bool, True = real token.
        scale: of the scores; head_dim ** -0.5 by default.
        sinks: (heads,) scores of one more key of each head, whose value is zero.
        softcap: c, where c tanh(x / c) takes the place of scaled scores x, before the bias.

    Returns:
        out (batch, heads, queries, head_dim_v): zeros for a query without a key.
        lse (batch, heads, queries): log of the sum of exponentials, -inf without a key.

    Raises:
        ValueError: heads is not a multiple of kv_heads.

    >>> q = torch.randn(1, 2, 5, 4)
    >>> out, lse = dense_attention(q, q, q, torch.zeros(5, 5, dtype=torch.bool))
    >>> bool((out == 0).all()), bool((lse == -math.inf).all())
    (True, True)
    """
    if q.shape[1] % k.shape[1]:
        raise ValueError(
            f"heads of q must be a multiple of the heads of k, got {q.shape[1]} and {k.shape[1]}."
        )
    group = q.shape[1] // k.shape[1]
    q, k, v = (x.double() for x in (q, k, v))
    k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * scale
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    if bias is not None:
        scores = scores + bias.double()
    on = _allowed(scores, mask, key_mask)
    if sinks is not None:
        logits = sinks.double()[:, None, None].expand(*scores.shape[:3], 1)
        scores, on = (
            torch.cat((scores, logits), 3),
            torch.nn.functional.pad(on, (0, 1), value=True),
        )
        v = torch.nn.functional.pad(v, (0, 0, 0, 1))
    return _softmax_sum(scores.masked_fill(~on, -math.inf), on, v)


def _allowed(scores: Tensor, mask: Tensor | Pattern | None, key_mask: Tensor | None) -> Tensor:
    """All restrictions as one bool tensor of the shape of the scores."""
    on = torch.ones_like(scores, dtype=torch.bool)
    if isinstance(mask, Pattern):
        mask = mask.mask(scores.shape[-2], scores.shape[-1], scores.device)
    if mask is not None:
        on = on & mask
    return on if key_mask is None else on & key_mask[:, None, None, :]


def _softmax_sum(scores: Tensor, on: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax by its definition, written so that empty rows have zero gradients, not NaN."""
    empty = ~on.any(-1, keepdim=True)
    top = scores.detach().amax(-1, keepdim=True) if scores.shape[-1] else empty.double()
    top = top.masked_fill(empty, 0.0)
    weights = torch.exp(scores - top).masked_fill(~on, 0.0)
    total = weights.sum(-1, keepdim=True).masked_fill(empty, 1.0)
    out = torch.einsum("bhqk,bhkd->bhqd", weights / total, v)
    lse = (total.log() + top).masked_fill(empty, -math.inf)
    return out, lse[..., 0]
