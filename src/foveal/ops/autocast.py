"""Autocast: attention then takes its dtype, but chooses its arithmetic itself."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor


def is_on(device: str) -> bool:
    """Whether autocast is on for this type of device; the meta device knows none."""
    return device != "meta" and torch.is_autocast_enabled(device)


def lowered(*tensors: Tensor) -> list[Tensor]:
    """Tensors of any shape, those in float32 in the dtype of autocast, which is on."""
    dtype = torch.get_autocast_dtype(tensors[0].device.type)
    return [x.to(dtype) if x.dtype == torch.float32 else x for x in tensors]


def off(device: str) -> Any:
    """A context in which it is off."""
    return contextlib.nullcontext() if device == "meta" else torch.autocast(device, enabled=False)
