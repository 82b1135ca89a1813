"""What can be asked of a layer that may be wrapped, quantised, sharded or hooked.

Adapters, pruning, parametrisations and quantisation put other modules in a layer's place, or make
`weight` another tensor, a method, or nothing at all. The answers here are right for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from foveal.layers.linear import is_plain


def device_of(module: nn.Module) -> torch.device:
    """Where a module lives: the device of its first weight; the CPU where it has none."""
    first = next(_tensors(module), None)
    return torch.device("cpu") if first is None else first.device


def dtype_of(module: nn.Module) -> torch.dtype:
    """What a module computes in: the dtype of its first weight that is a floating-point number."""
    floats = (one.dtype for one in _tensors(module) if one.is_floating_point())
    return next(floats, torch.float32)  # quantised layers give float32


def state_dtype(layer: nn.Module) -> torch.dtype:
    """What a layer's output will be stored as: its weight's dtype, or autocast's."""
    device = device_of(layer).type
    if device != "meta" and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return dtype_of(layer)


def table(embedding: nn.Module, first: int, stop: int) -> Tensor:
    """Rows `first` to `stop` of an embedding (rows, dim); its outputs where it is wrapped."""
    if is_plain(embedding, nn.Embedding) and embedding.max_norm is None:
        return embedding.weight[first:stop]
    return embedding(torch.arange(first, stop, device=device_of(embedding)))


def matrix(projection: nn.Module, dim: int) -> Tensor:
    """What a projection of `dim` features multiplies by: (features out, dim)."""
    if is_plain(projection):
        return cast(Tensor, projection.weight)
    # of a wrapped layer it is seen in what it makes of unit vectors
    dtype, device = dtype_of(projection), device_of(projection)
    unit = torch.eye(dim + 1, dim, dtype=dtype, device=device)  # and of zero, for its bias
    outputs = projection(unit)
    return (outputs[:-1] - outputs[-1:]).T


def is_traced() -> bool:
    """Whether tensors made now may be stand-ins that must not be kept for later calls.

    Under fake tensors, tracing, the transforms of torch.func, and other modes of dispatch.
    """
    return (
        len(_get_current_dispatch_mode_stack()) > 0
        or torch._C._functorch.maybe_current_level() is not None
        or torch.jit.is_tracing()
    )


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    own = getattr(module, "weight", None)  # a method where the layer is quantised
    if isinstance(own, Tensor):
        yield own
    # one by one: the compiler of torch 2.14 closes what is yielded from, which a chain is not for
    for one in chain(module.parameters(), module.buffers()):  # noqa: UP028
        yield one
