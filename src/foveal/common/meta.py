"""Modules without memory: what a model would be, before anybody pays for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

_DRAWS = {"normal_", "uniform_", "log_normal_", "bernoulli_", "random_", "exponential_"}
_CUTS = {"erfinv_", "clamp_"}  # what trunc_normal_ of torch 2.11 does to its draws


class _Undrawn(TorchFunctionMode):
    """Leaves tensors as they are where numbers would be drawn into them, and cut."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if getattr(func, "__name__", "") in _DRAWS | _CUTS:
            return args[0] if args else (kwargs or {})["tensor"]  # as torch.nn.init passes it
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def on_meta() -> Iterator[None]:
    """Modules that are made inside have shapes, and no storage.

    No numbers are drawn: on the meta device that would import the compiler, which takes seconds.
    """
    with torch.device("meta"), _Undrawn():
        yield


@contextlib.contextmanager
def with_values() -> Iterator[None]:
    """What is made inside has numbers, though a model around it be on meta or of fake tensors."""
    with _disable_current_modes(), torch.device("cpu"):
        yield


def draw_truncated(weight: Tensor, std: float) -> Tensor:
    """nn.init.trunc_normal_, which looks at what it has drawn: fake tensors have nothing there."""
    if not isinstance(weight, FakeTensor):
        nn.init.trunc_normal_(weight, std=std)
    return weight
