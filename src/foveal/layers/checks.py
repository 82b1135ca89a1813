"""Checks of constructor arguments that several layers share."""

from __future__ import annotations

import torch
from torch import Tensor

from foveal.common.checks import check_sizes

Device = torch.device | str | None


def check_dropout(dropout: float) -> None:
    """Raise ValueError unless the dropout is a probability below 1."""
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout must be at least 0 and below 1, got {dropout=}.")


def head_size(dim: int, heads: int, dim_head: int | None) -> int:
    """`dim_head`, or `dim / heads` when it is None.

    Raises:
        ValueError: a size is not positive, or heads do not divide dim.
    """
    check_sizes(dim=dim, heads=heads)
    if dim_head is None:
        if dim % heads:
            raise ValueError(
                f"heads must divide dim when dim_head is not given, got {dim=}, {heads=}; "
                "choose other heads or set dim_head."
            )
        return dim // heads
    check_sizes(dim_head=dim_head)
    return dim_head


def split_heads(x: Tensor, dim_head: int) -> Tensor:
    """(batch, tokens, heads * dim_head) -> (batch, heads, tokens, dim_head), without a copy."""
    return x.unflatten(-1, (-1, dim_head)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """(batch, heads, tokens, dim_head) -> (batch, tokens, heads * dim_head)."""
    return x.transpose(1, 2).flatten(2)
