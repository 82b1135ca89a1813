"""impl="reference": attention by a dense mask. Slow, plain, and the definition of the others."""

from __future__ import annotations

import torch
from torch import Tensor

from foveal.common.by_example import dropout
from foveal.common.memo import sizes_of
from foveal.ops.bias import finite
from foveal.ops.logits import capped
from foveal.ops.rows_without_keys import softmax_rows


def masked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    *,
    bias: Tensor | None = None,
    key_mask: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax attention under a dense mask.

    Args:
        q: (batch, heads, n_queries, head_dim).
        k, v: (batch, kv_heads, n_keys, head_dim or head_dim_v); kv_heads divides heads.
        mask: (n_queries, n_keys) or broadcastable to (batch, heads, n_queries, n_keys) bool.
        bias: added to the logits; broadcastable to (batch, heads, n_queries, n_keys).
        key_mask: (batch, n_keys) bool, True = real key.
        softcap: bounds the logits, before the bias is added.

    Returns:
        out (batch, heads, n_queries, head_dim_v) and lse (batch, heads, n_queries), in at least
        float32. A query without keys gives zeros and -inf, with zero gradients.
    """
    dtype = q.dtype
    q, k, v = (x.to(torch.promote_types(dtype, torch.float32)) for x in (q, k, v))
    k, v = without_unread(k, v, mask, key_mask)
    groups = sizes_of(q)[1] // sizes_of(k)[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    logits = (q * (sizes_of(q)[-1] ** -0.5 if scale is None else scale)) @ k.mT
    logits = capped(logits, softcap)
    if bias is not None:
        logits = logits + finite(bias, logits.dtype)
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf)
    if key_mask is not None:
        logits = logits.masked_fill(~key_mask[:, None, None, :], -torch.inf)
    weights, lse = softmax_rows(logits)
    if dropout_p:
        weights = dropout(weights, dropout_p)
    return (weights @ v).to(dtype), lse


def without_unread(
    k: Tensor, v: Tensor, mask: Tensor | None, key_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Keys and values with zeros where nobody may read them: a weight of zero times NaN is NaN.

    All arguments as in `masked_attention`.
    """
    unread = None if key_mask is None else ~key_mask[:, None]
    if mask is not None:
        read = mask.expand(*mask.shape[:-1], k.shape[2]).any(-2)
        if read.ndim > 1 and read.shape[-2] > 1:  # heads that differ read keys of their own
            read = read.unflatten(-2, (k.shape[1], -1)).any(-2)
        unread = ~read if unread is None else unread | ~read
    if unread is None:
        return k, v
    return k.masked_fill(unread[..., None], 0.0), v.masked_fill(unread[..., None], 0.0)
