"""Softmax in which a row may have nothing to choose from: zeros and -inf, never NaN."""

from __future__ import annotations

import torch
from torch import Tensor

from foveal.common.memo import sizes_of


def softmax_rows(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax and log-sum-exp over the last dimension, where -inf means that there is no key.

    A row of nothing but -inf has weights of zero, a log-sum-exp of -inf, and passes no gradient.

    Args:
        logits: (..., n_keys).

    Returns:
        weights (..., n_keys) and lse (...).
    """
    dead = (logits == -torch.inf).all(-1, keepdim=True)
    logits = logits.masked_fill(dead, 0.0)
    weights = logits.softmax(-1).masked_fill(dead, 0.0)
    return weights, logsumexp_rows(logits).masked_fill(dead[..., 0], -torch.inf)


def logsumexp_rows(logits: Tensor) -> Tensor:
    """The log-sum-exp of `softmax_rows` alone: (..., keys) -> (...).

    Its gradient is that of the weights, also where logits are so large that their own rounding
    hides the logarithm; torch's would be exp(logits - lse) then, one for each key.
    """
    if sizes_of(logits)[-1] == 0:
        return logits.sum(-1) - torch.inf
    top = logits.detach().amax(-1, keepdim=True)
    top = top.masked_fill(top == -torch.inf, 0.0)
    total = (logits - top).exp().sum(-1)
    dead = total == 0
    return (total.masked_fill(dead, 1.0).log() + top[..., 0]).masked_fill(dead, -torch.inf)


def open_dead_rows(mask: Tensor) -> tuple[Tensor, Tensor]:
    """(mask in which a row without keys has all of them, the rows that had none).

    What such a row computes is to be thrown away: its output belongs filled with zeros.

    Args:
        mask: (..., n_keys) bool, True = attend.

    Returns:
        a mask of the same shape, and dead (..., 1) bool.
    """
    dead = ~mask.any(-1, keepdim=True)
    return mask | dead, dead
