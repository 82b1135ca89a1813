"""impl="reference": attention by a dense mask. Slow, plain, and the definition of the others."""

from __future__ import annotations

import torch
from torch import Tensor


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
) -> tuple[Tensor, Tensor]:
    """Softmax attention under a dense mask.

    Args:
        q: (batch, heads, n_queries, head_dim).
        k, v: (batch, kv_heads, n_keys, head_dim or head_dim_v); kv_heads divides heads.
        mask: (n_queries, n_keys) or broadcastable to (batch, heads, n_queries, n_keys) bool.
        bias: added to the logits; broadcastable to (batch, heads, n_queries, n_keys).
        key_mask: (batch, n_keys) bool, True = real key.

    Returns:
        out (batch, heads, n_queries, head_dim_v) and lse (batch, heads, n_queries), in at least
        float32. A query without keys gives zeros and -inf, with zero gradients.
    """
    dtype = q.dtype
    if dtype in (torch.float16, torch.bfloat16):
        q, k, v = q.float(), k.float(), v.float()
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    logits = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.mT
    if bias is not None:
        logits = logits + bias.to(logits.dtype)
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf)
    if key_mask is not None:
        logits = logits.masked_fill(~key_mask[:, None, None, :], -torch.inf)
    dead = (logits == -torch.inf).all(-1, keepdim=True)
    logits = logits.masked_fill(dead, 0.0)
    weights = logits.softmax(-1).masked_fill(dead, 0.0)
    if dropout_p:
        weights = torch.dropout(weights, dropout_p, train=True)
    lse = logits.logsumexp(-1).masked_fill(dead[..., 0], -torch.inf)
    return (weights @ v).to(dtype), lse
