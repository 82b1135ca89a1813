"""Types of numbers that sums are made in."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """A tensor of any shape in float32 where its type is narrower; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
