"""The small functions of dalle-pytorch's main module."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.compat import autoregressive
from foveal.compat.autoregressive import eval_decorator as eval_decorator


class always:  # noqa: N801 - the package's name
    """A function of anything that gives one value."""

    def __init__(self, val: Any) -> None:
        self.val = val

    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        return self.val


def is_empty(t: Tensor) -> bool:
    """Whether a tensor has no elements."""
    return t.numel() == 0


def masked_mean(t: Tensor, mask: Tensor, dim: int = 1) -> Tensor:
    """Mean over the real tokens: t (batch, tokens, dim), mask (batch, tokens) -> (batch, dim).

    NaN where nothing is real, as in the package.
    """
    return t.masked_fill(~mask[:, :, None], 0.0).sum(1) / mask.sum(1)[..., None]


def prob_mask_like(shape: Any, prob: float, device: Any) -> Tensor:
    """Bools that are True with a probability."""
    return torch.rand(shape, device=device) < prob


def set_requires_grad(model: nn.Module, value: bool) -> None:
    """Let all parameters be trained, or none."""
    model.requires_grad_(value)


def log(t: Tensor, eps: float = 1e-20) -> Tensor:
    """Logarithm of what is at least eps."""
    return t.clamp(min=eps).log()


def gumbel_noise(t: Tensor) -> Tensor:
    """Gumbel noise of the shape of t."""
    return -log(-log(torch.rand_like(t)))


def gumbel_sample(t: Tensor, temperature: float = 1.0, dim: int = -1) -> Tensor:
    """One index along `dim`, drawn by the logits t."""
    return (t / temperature + gumbel_noise(t)).argmax(dim)


def top_k(logits: Tensor, thres: float = 0.5) -> Tensor:
    """All but the largest logits (batch, num_tokens) at -inf; `thres` is the share that goes."""
    return autoregressive.top_k(logits, thres)


class SharedEmbedding(nn.Embedding):
    """An embedding whose rows are some of the rows of an output layer."""

    def __init__(self, linear: nn.Linear, start_index: int, end_index: int, **kwargs: Any) -> None:
        super().__init__(end_index - start_index, linear.weight.shape[1], **kwargs)
        del self.weight
        self.linear = linear
        self.start_index, self.end_index = start_index, end_index

    def forward(self, input: Tensor) -> Tensor:
        """Indices (any shape) -> (same shape, dim)."""
        return F.embedding(
            input,
            self.linear.weight[self.start_index : self.end_index],
            self.padding_idx,
            self.max_norm,
            self.norm_type,
            self.scale_grad_by_freq,
            self.sparse,
        )
