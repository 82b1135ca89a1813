"""The feed-forward half of a transformer block."""

from __future__ import annotations

from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from foveal.layers.checks import check_dropout, check_sizes
from foveal.layers.linear import Linear

Activation = Literal["gelu", "geglu", "swiglu"]


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

    def __init__(
        self,
        dim: int,
        mult: float = 4,
        activation: Activation = "gelu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        hidden = int(dim * mult)
        check_sizes(dim=dim)
        check_dropout(dropout)
        if hidden < 1:
            raise ValueError(f"ff_mult must give at least one hidden feature, got {mult=}.")
        if activation not in get_args(Activation):
            known = ", ".join(get_args(Activation))
            raise ValueError(f"activation must be one of {known}; got {activation=!r}.")
        self.activation = activation
        self.to_hidden = Linear(dim, hidden if activation == "gelu" else 2 * hidden)
        self.dropout = nn.Dropout(dropout)
        self.to_out = Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, dim) -> same."""
        x = self.to_hidden(x)
        if self.activation == "gelu":
            x = F.gelu(x)
        else:
            x, gate = x.chunk(2, dim=-1)
            x = x * (F.gelu(gate) if self.activation == "geglu" else F.silu(gate))
        return self.to_out(self.dropout(x))

    def flops(self, length: int) -> int:
        """Floating-point operations of a forward pass over `length` tokens."""
        return 2 * length * (self.to_hidden.weight.numel() + self.to_out.weight.numel())
