"""The feed-forward half of a transformer block."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.common.arguments import checked
from foveal.layers.checks import check_dropout, check_sizes
from foveal.layers.dropout import Dropout
from foveal.layers.linear import project
from foveal.ops.define import is_beyond_functions

Activation = Literal["gelu", "geglu", "swiglu"]

FEW = 1 << 14
"""Values up to which torch's threaded GELU may wait for its threads longer than it computes."""


def gelu(x: Tensor) -> Tensor:
    """The exact GELU, of any shape; for the few values of a decoding step, in one thread."""
    if torch.compiler.is_compiling() or x.numel() > FEW or x.shape[-1] % 2:
        return F.gelu(x)
    # torch takes its threaded kernel for contiguous tensors only
    pairs = x.unflatten(-1, (-1, 2)).transpose(-1, -2)
    return F.gelu(pairs).transpose(-1, -2).flatten(-2)


class _GEGLU(torch.autograd.Function):
    """x * gelu(gate) of (..., x | gate); the backward pass keeps no activation."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor) -> Tensor:
        ctx.save_for_backward(hidden)
        x, gate = hidden.chunk(2, -1)
        return x * gelu(gate)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (hidden,) = ctx.saved_tensors
        x, gate = hidden.chunk(2, -1)
        d_gate = torch.ops.aten.gelu_backward(grad * x, gate)
        return torch.cat((grad * F.gelu(gate), d_gate), -1)


def _geglu(hidden: Tensor) -> Tensor:
    if is_beyond_functions(hidden):
        x, gate = hidden.chunk(2, -1)
        return x * F.gelu(gate)
    return _GEGLU.apply(hidden)


class FeedForward(nn.Module):
    """Linear, activation, linear; applied to each token alone.

    Args:
        dim: features in and out.
        mult: hidden features are `mult * dim`; gated activations have as many gates beside them
            (Shazeer, "GLU Variants Improve Transformer", 2020).
        activation: "gelu", "geglu" or "swiglu".
        dropout: on the hidden features.

    Raises:
        ValueError: an unknown activation or a size that makes no sense.
    """

    @checked
    def __init__(
        self,
        dim: int,
        mult: float = 4,
        activation: Activation = "gelu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        hidden = int(dim * mult + 1e-6)  # a ratio of two sizes may come out just below
        check_sizes(dim=dim)
        check_dropout(dropout)
        if hidden < 1:
            raise ValueError(f"ff_mult must give at least one hidden feature, got {mult=}.")
        self.activation = activation
        self.to_hidden = nn.Linear(dim, hidden if activation == "gelu" else 2 * hidden)
        self.dropout = Dropout(dropout)
        self.to_out = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, dim) -> same."""
        x = project(self.to_hidden, x)
        if self.activation == "gelu":
            x = gelu(x)
        elif self.activation == "geglu":
            x = _geglu(x)
        else:
            x, gate = x.chunk(2, dim=-1)
            x = x * F.silu(gate)
        return project(self.to_out, self.dropout(x))
