"""What shapes the logits beside a bias: soft-capping, and sinks, which are keys without values."""

from __future__ import annotations

import torch
from torch import Tensor


def capped(logits: Tensor, softcap: float | None) -> Tensor:
    """Logits within (-softcap, softcap), as they are near zero; None leaves them."""
    return logits if softcap is None else (logits / softcap).tanh() * softcap


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
