"""Products that are fast for the few rows of a decoding step, and which layers are plain."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import NoneType
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules import module as _all_modules

from foveal.common.processor import fast_dtype

_FEW_ROWS, _PARTS = 4, 4
FEW_WEIGHTS = 1 << 18
"""Values of a weight that one core reads from its cache before it could share them out."""


def project(layer: nn.Module, x: Tensor) -> Tensor:
    """layer(x) of a projection: by `linear` where it is plain, called as a module where not.

    The layer is a plain nn.Linear and no subclass with another product: what works by the exact
    class, such as torch's dynamic quantisation, would pass over a subclass.

    Args:
        layer: a projection, or several modules in an nn.Sequential.
        x: (..., in_features).

    Returns:
        (..., out_features)
    """
    if is_plain(layer):
        return linear(x, layer.weight, layer.bias)  # type: ignore[arg-type]
    if is_plain(layer, nn.Sequential):
        for part in layer.children():
            x = project(part, x)
        return x
    return cast(Tensor, layer(x))


def is_plain(layer: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether calling a layer is no more than its weight and its bias in the known formula.

    Only then may its weights be joined with others or read in another order. What is wrapped
    (adapters), pruned, parametrised, quantised, sharded or hooked must be called as a module.

    Args:
        layer: a projection.
        kinds: the exact classes whose formula the caller knows; nn.Linear by default.
    """
    return (
        type(layer) in (kinds or (nn.Linear,))  # parametrisations and FSDP change the class
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

    Many rows of half precision are multiplied in float32 where the processor only emulates the
    products: some ten times faster, and rounded once.

    Args:
        x: (..., in_features).
        weight: (out_features, in_features).
        bias: (out_features,).

    Returns:
        (..., out_features)
    """
    traced = torch.compiler.is_compiling()
    if traced and torch.compiler.is_exporting():  # for any number of rows, and any processor
        return F.linear(x, weight, bias)
    if traced or not _decodes(x, weight):
        if _is_emulated(x, weight):
            wide = None if bias is None else bias.float()
            return F.linear(x.float(), weight.float(), wide).to(x.dtype)
        return F.linear(x, weight, bias)
    if weight.numel() <= FEW_WEIGHTS:
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


def _is_emulated(x: Tensor, weight: Tensor) -> bool:
    """Whether products of many rows in this half precision would be an emulation's."""
    return (
        x.dtype in (torch.bfloat16, torch.float16)
        and x.numel() > _FEW_ROWS * weight.shape[1]
        and x.dtype == weight.dtype
        and x.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and fast_dtype("cpu", x.dtype) == torch.float32
    )


def row_product(weight: Tensor, bias: Tensor | None, rows: int) -> Callable[[Tensor], Tensor]:
    """`linear` of these weights for many rows, each (in_features,) or (rows, in_features)."""
    row = weight[:1].expand(rows, -1)  # as those to come
    if rows == 1 and weight.numel() <= FEW_WEIGHTS and _decodes(row, weight):
        if bias is None:
            return functools.partial(torch.mv, weight)
        return functools.partial(torch.addmv, bias, weight)
    return lambda x: linear(x, weight, bias)


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
