"""Losses of long sequences, whose logits need never lie in memory all at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from foveal.common.checks import as_int
from foveal.common.dtypes import wide


def losses(
    logits: Callable[[Tensor], Tensor], x: Tensor, targets: Tensor, chunk: int | None = None
) -> Tensor:
    """Cross-entropy in nats of each target; 0 where that is -100.

    Args:
        logits: features (batch, some tokens, dim) -> (batch, some tokens, num_tokens).
        x: (batch, tokens, dim).
        targets: (batch, tokens) int64.
        chunk: make the logits of so many tokens at a time, and once more in the backward pass;
            None: of all.

    Returns:
        (batch, tokens), in float32 at least.

    Raises:
        ValueError: targets of another shape, or a chunk that is no positive number.
    """
    if targets.shape != x.shape[:2]:
        raise ValueError(
            f"targets must be (batch, length) = {tuple(x.shape[:2])}, as the tokens, got "
            f"{tuple(targets.shape)}."
        )

    def some(x: Tensor, targets: Tensor) -> Tensor:
        rows = wide(logits(x)).flatten(0, 1)
        return F.cross_entropy(rows, targets.flatten(), reduction="none").view(targets.shape)

    if chunk is None:
        return some(x, targets)
    size = max(1, as_int("chunk", chunk, 1) // max(1, len(x)))
    parts = zip(x.split(size, 1), targets.split(size, 1), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([some(*part) for part in parts], 1)
    again: Any = {"use_reentrant": False, "preserve_rng_state": False}
    return torch.cat([checkpoint(some, *part, **again) for part in parts], 1)
