"""What shapes the logits beside a bias: soft-capping, and sinks, which are keys without values."""

from __future__ import annotations

import torch
from torch import Tensor

from foveal.common.by_example import dropout


def capped(logits: Tensor, softcap: float | None) -> Tensor:
    """Logits within (-softcap, softcap), as they are near zero; None leaves them."""
    return logits if softcap is None else (logits / softcap).tanh() * softcap


def shaped_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    added: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    *,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Softmax attention in which every pair is written out, with what no fused kernel knows.

    Args:
        q: (batch, heads, n_queries, head_dim).
        k, v: (batch, kv_heads, n_keys, head_dim or head_dim_v); kv_heads divides heads.
        added: what the logits gain, or a bool mask, True = attend; broadcasts to
            (batch, heads, n_queries, n_keys). Each row must leave a key.
        softcap, sinks: as in `attend`; sinks broadcast to (batch, heads, n_queries, 1).

    Returns:
        (batch, heads, n_queries, head_dim_v) in the dtype of v.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    wide = torch.promote_types(q.dtype, torch.float32)
    if (groups := q.shape[1] // k.shape[1]) > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    logits = capped(((q * scale) @ k.mT).to(wide), softcap)
    if added is not None:
        hidden = added.dtype == torch.bool
        logits = logits.masked_fill(~added, -torch.inf) if hidden else logits + added
    if sinks is not None:
        logits = torch.cat([logits, sinks.to(wide).expand(*logits.shape[:-1], 1)], -1)
    weights = logits.softmax(-1)
    if sinks is not None:
        weights = weights[..., :-1]
    if dropout_p:
        weights = dropout(weights, dropout_p)
    return weights.to(v.dtype) @ v


def with_sink_key(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float,
    sinks: Tensor,
    biased: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """(q, k, v, mask) for a fused kernel, in which the sink is one more key with a value of zero.

    Two features of the queries hold its logit, so that it has the gradient of a product, and in
    half precision all of its digits. Queries are scaled already. Shapes as in `attend`.

    biased: the mask holds numbers of a bias besides -inf.
    """
    lowest = max(torch.finfo(x.dtype).min for x in (q, sinks))
    sinks = sinks.clamp(min=lowest / 2)  # zero times -inf would be NaN
    if biased and mask is not None:
        mask = _above(mask, lowest / 8)  # where a head has no sink, the lowest number is more
    high = sinks.to(q.dtype)
    low = (sinks - high.to(sinks.dtype)).detach().to(q.dtype)
    logit = torch.stack((high, low), -1)[None, :, None].expand(*q.shape[:3], 2)
    one = torch.cat((k.new_zeros(k.shape[-1]), k.new_ones(2))).expand(*k.shape[:2], 1, -1)
    q = torch.cat((q * scale, logit), -1)
    k = torch.cat((torch.nn.functional.pad(k, (0, 2)), one), 2)
    v = torch.nn.functional.pad(v, (0, 0, 0, 1))
    if mask is not None:
        mask = torch.cat((mask, torch.ones_like(mask[..., :1]) * (mask.dtype == torch.bool)), -1)
    return q, k, v, mask


def _above(bias: Tensor, least: float) -> Tensor:
    """The bias, of any shape, with finite numbers of at least `least`; its gradient is whole."""
    kept = bias.detach()
    low = (kept < least) & (kept > -torch.inf)
    return torch.where(low, least + (bias - kept), bias)


def with_sinks(out: Tensor, lse: Tensor, sinks: Tensor | None) -> tuple[Tensor, Tensor]:
    """The same attention with one more key a head, which has a logit but no value.

    Its weight is taken from that of all others alike, so that the result of any implementation
    that tells the log-sum-exp needs a factor, and nothing else.

    Args:
        out: (batch, heads, n_queries, head_dim_v).
        lse: (batch, heads, n_queries), -inf for a query without keys.
        sinks: (heads,), -inf for a head without a sink; None for none at all.

    Returns:
        (out, lse) of the same shapes and dtypes.
    """
    if sinks is None:
        return out, lse
    logit = sinks.to(lse.dtype)[:, None].expand_as(lse)
    nothing = (lse == -torch.inf) & (logit == -torch.inf)  # of which no derivative is a number
    total = torch.logaddexp(lse.masked_fill(nothing, 0.0), logit)
    share = (lse.masked_fill(nothing, 0.0) - total).exp()
    return (out * share[..., None]).to(out.dtype), total.masked_fill(nothing, -torch.inf)
