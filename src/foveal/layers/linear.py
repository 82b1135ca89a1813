"""A linear layer that is fast for the few rows of a decoding step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_FEW_ROWS, _PARTS = 4, 4


class Linear(nn.Linear):
    """nn.Linear, whose product with a few rows uses all cores of a CPU.

    A step of decoding multiplies each weight with one row, which BLAS does on one core at a third
    of the memory's bandwidth; the same product over parts of the weight as a batch uses them all.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)"""
        if not self._decodes(x):
            return super().forward(x)
        rows = x.reshape(-1, self.in_features).mT
        parts = self.weight.unflatten(0, (_PARTS, -1))
        out = torch.bmm(parts, rows.expand(_PARTS, -1, -1)).flatten(0, 1).mT
        if self.bias is not None:
            out = out + self.bias
        return out.reshape(*x.shape[:-1], self.out_features)

    def _decodes(self, x: Tensor) -> bool:
        return (
            not torch.compiler.is_compiling()
            and x.device.type == "cpu"
            and 0 < x.numel() <= _FEW_ROWS * self.in_features
            and self.out_features % _PARTS == 0
            and x.dtype == self.weight.dtype
            and x.dtype in (torch.float32, torch.float64)
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
        )
