"""impl="flex": FlexAttention with an analytic block mask. CUDA; on CPU a cross-check."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from foveal.ops.bias import WindowBias
from foveal.patterns import Pattern

BLOCK = 128


def why_not(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | WindowBias | None, dropout_p: float
) -> str | None:
    """The reason why flex cannot do this call, or None when it can."""
    if dropout_p:
        return "it has no dropout"
    if isinstance(bias, WindowBias):
        return "a WindowBias would have to be expanded"
    if bias is not None and bias.requires_grad and torch.is_grad_enabled():
        return "the gradient of a bias is slow and not reproducible there"
    if q.device.type == "cpu" and torch.is_grad_enabled():
        if any(t.requires_grad for t in (q, k, v)):
            return "FlexAttention has no backward pass on CPU"
    elif q.device.type not in ("cpu", "cuda"):
        return f"FlexAttention does not run on {q.device.type}"
    return None


def flex_attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    bias: Tensor | None,
    key_mask: Tensor | None,
    scale: float | None,
) -> tuple[Tensor, Tensor]:
    """Shapes as in `attend`; returns (out, lse)."""
    length = q.shape[-2]
    block_mask = _block_mask(pattern, length, str(q.device))
    out, lse = _kernel(q.device.type)(
        q,
        k,
        v,
        score_mod=_score_mod(bias, key_mask, q, k),
        block_mask=block_mask,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
        return_lse=True,
    )
    # rows without keys: flex leaves lse = -inf (compiled) or NaN outputs (eager)
    dead = ~torch.isfinite(lse)
    return out.masked_fill(dead[..., None], 0.0), lse.masked_fill(dead, -torch.inf)


@functools.lru_cache(maxsize=64)
def _block_mask(pattern: Pattern, length: int, device: str) -> Any:
    return pattern.block_mask(length, BLOCK, torch.device(device))


@functools.lru_cache(maxsize=2)
def _kernel(device: str) -> Callable[..., tuple[Tensor, Tensor]]:
    from torch.nn.attention.flex_attention import flex_attention

    if device == "cpu":  # compiled flex returns no lse on CPU (torch 2.13)
        return _quiet(flex_attention)
    return torch.compile(flex_attention, dynamic=True)


def _quiet(kernel: Callable) -> Callable:
    """Eager FlexAttention warns that it is slow; as a cross-check that is what it is for."""
    import warnings

    @functools.wraps(kernel)
    def call(*args: Any, **kwargs: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return kernel(*args, **kwargs)

    return call


def _score_mod(
    bias: Tensor | None, key_mask: Tensor | None, q: Tensor, k: Tensor
) -> Callable | None:
    if bias is None and key_mask is None:
        return None
    full = None
    if bias is not None:
        full = bias.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])

    def score_mod(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        if full is not None:
            score = score + full[b, h, i, j]
        if key_mask is not None:
            score = torch.where(key_mask[b, j], score, -float("inf"))
        return score

    return score_mod
