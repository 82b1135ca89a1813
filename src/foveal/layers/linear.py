"""A linear layer that is fast for the few rows of a decoding step, and which layers are plain."""

from __future__ import annotations

from types import NoneType

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules import module as _all_modules

_FEW_ROWS, _PARTS = 4, 4
_FEW_WEIGHTS = 1 << 18
"""Values of a weight that one core reads from its cache before it could share them out."""


class Linear(nn.Linear):
    """nn.Linear, whose product with a few rows uses all cores of a CPU: see `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)"""
        return linear(x, self.weight, self.bias)


def is_plain(layer: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether calling a layer is no more than its weight and its bias in the known formula.

    Only then may its weights be joined with others or read in another order. What is wrapped
    (adapters), pruned, parametrised, quantised, sharded or hooked must be called as a module.

    Args:
        layer: a projection.
        kinds: the exact classes whose formula the caller knows; nn.Linear and Linear by default.
    """
    return (
        type(layer) in (kinds or (nn.Linear, Linear))  # parametrisations and FSDP change the class
        and not (
            layer._forward_hooks
            or layer._forward_pre_hooks  # pruning, spectral_norm and weight_norm are such hooks
            or layer._backward_hooks
            or layer._backward_pre_hooks
        )
        and not _all_modules._has_any_global_hook()
        and "forward" not in vars(layer)
        # no quantised or distributed tensor
        and type(getattr(layer, "weight", None)) in (nn.Parameter, Tensor, FakeTensor, NoneType)
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """torch.nn.functional.linear, fast also for a few rows on a CPU.

    A step of decoding multiplies each weight with one row, which BLAS does on one core at a third
    of the memory's bandwidth; the same product over parts of the weight as a batch uses them all.
    A weight that is small is sooner multiplied by one core, as a matrix with a vector.

    Args:
        x: (..., in_features).
        weight: (out_features, in_features).
        bias: (out_features,).

    Returns:
        (..., out_features)
    """
    if not _decodes(x, weight):
        return F.linear(x, weight, bias)
    if weight.numel() <= _FEW_WEIGHTS:
        if x.numel() > weight.shape[1]:
            return F.linear(x, weight, bias)
        row = x.reshape(-1)
        out = torch.mv(weight, row) if bias is None else torch.addmv(bias, weight, row)
        return out.view(*x.shape[:-1], len(weight))
    rows = x.reshape(-1, x.shape[-1]).mT
    parts = weight.unflatten(0, (_PARTS, -1))
    out = torch.bmm(parts, rows.expand(_PARTS, -1, -1)).flatten(0, 1).mT
    if bias is not None:
        out = out + bias
    return out.reshape(*x.shape[:-1], len(weight))


def _decodes(x: Tensor, weight: Tensor) -> bool:
    return (
        0 < x.numel() <= _FEW_ROWS * weight.shape[1]
        and not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and x.shape[-1] == weight.shape[1]
        and weight.shape[0] % _PARTS == 0
        and type(weight) in (nn.Parameter, Tensor)  # not quantised, not distributed
        and x.dtype == weight.dtype
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    )
