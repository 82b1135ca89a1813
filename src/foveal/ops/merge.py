"""Merging partial attentions by log-sum-exp: the one rule behind every structured softmax."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from foveal.common.memo import sizes_of


def merge(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Attention over the union of disjoint sets of keys, from the attention over each set.

    Differentiable in every output and every log-sum-exp. A part in which a query has no key
    carries a log-sum-exp of -inf and weighs nothing, whatever stands in its output. Sums are kept
    in float32 at least.

    Args:
        parts: (out, lse) pairs; out (..., n_queries, head_dim), lse (..., n_queries).

    Returns:
        (out, lse) of the softmax over all keys together; zeros and -inf where no part has a key.

    Raises:
        ValueError: there is no part, or shapes differ.
    """
    if not parts:
        raise ValueError("parts must hold at least one (out, lse) pair, got none.")
    first_out, first_lse = parts[0]
    for out, lse in parts:
        if sizes_of(out) != sizes_of(first_out) or sizes_of(lse) != sizes_of(out)[:-1]:
            raise ValueError(
                "parts must have equal shapes, with lse as out without its last dimension; got "
                f"out {tuple(out.shape)} and lse {tuple(lse.shape)} beside "
                f"{tuple(first_out.shape)} and {tuple(first_lse.shape)}."
            )
    if len(parts) == 1:
        return first_out.masked_fill((first_lse == -torch.inf)[..., None], 0.0), first_lse
    lse_all = torch.stack([lse for _, lse in parts])
    # rows without any key would compute -inf - -inf: give them a finite maximum instead
    top = lse_all.detach().amax(0)
    top = torch.where(top == -torch.inf, torch.zeros_like(top), top)
    weights = (lse_all - top).exp()
    total = weights.sum(0)
    dead = total == 0
    safe = torch.where(dead, torch.ones_like(total), total)
    shares = weights / safe
    wide = torch.promote_types(shares.dtype, first_out.dtype)
    out = torch.zeros((), dtype=wide, device=first_out.device)
    for share, (part, part_lse) in zip(shares.unbind(), parts, strict=True):
        empty = (part_lse == -torch.inf)[..., None]
        out = out + share.to(wide)[..., None] * part.masked_fill(empty, 0.0)
    lse = torch.where(dead, torch.full_like(top, -torch.inf), safe.log() + top)
    return out.to(first_out.dtype), lse
