"""Merging partial attentions by log-sum-exp: the one rule behind every structured softmax."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from foveal.common.checks import check_dense
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
        ValueError: there is no part, they are not of dense floating tensors, or shapes or devices
            differ.
    """
    if not parts:
        raise ValueError("parts must hold at least one (out, lse) pair, got none.")
    first_out, first_lse = parts[0]
    for out, lse in parts:
        check_dense("out of parts", out)
        check_dense("lse of parts", lse)
        if sizes_of(out) != sizes_of(first_out) or sizes_of(lse) != sizes_of(out)[:-1]:
            raise ValueError(
                "parts must have equal shapes, with lse as out without its last dimension; got "
                f"out {tuple(out.shape)} and lse {tuple(lse.shape)} beside "
                f"{tuple(first_out.shape)} and {tuple(first_lse.shape)}."
            )
        if not (out.is_floating_point() and lse.is_floating_point()):
            raise ValueError(f"parts must be floating, got out {out.dtype} and lse {lse.dtype}.")
        if not out.device == lse.device == first_out.device:
            raise ValueError(
                f"parts must be on one device, got out on {out.device} and lse on {lse.device} "
                f"beside {first_out.device}."
            )
    if len(parts) == 1:
        return first_out.masked_fill((first_lse == -torch.inf)[..., None], 0.0), first_lse
    lse_all = torch.stack([lse for _, lse in parts])
    # rows without any key would compute -inf - -inf: give them a finite maximum instead
    top = lse_all.detach().amax(0)
    top = top.masked_fill(top == -torch.inf, 0.0)
    weights = (lse_all - top).exp()
    total = weights.sum(0)
    dead = total == 0
    safe = total.masked_fill(dead, 1.0)
    wide = torch.promote_types(weights.dtype, first_out.dtype)
    shares = (weights / safe).to(wide)[..., None].unbind()
    nowhere = (lse_all == -torch.inf)[..., None].unbind()
    out = torch.zeros((), dtype=wide, device=first_out.device)
    for share, empty, (part, _) in zip(shares, nowhere, parts, strict=True):
        out = out + share * part.masked_fill(empty, 0.0)
    lse = (safe.log() + top).masked_fill(dead, -torch.inf)
    return out.to(first_out.dtype), lse
