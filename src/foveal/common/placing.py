"""Where numbers live and what type they have, as people name it: "cuda:0", "bfloat16"."""

from __future__ import annotations

from typing import Any

import torch

from foveal.common.words import meant

_WEIGHTS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_BY_NAME = {str(one).removeprefix("torch."): one for one in _WEIGHTS}
_SHORT = {"float": "float32", "half": "float16", "double": "float64", "bf16": "bfloat16"}
_SHORT |= {"fp32": "float32", "fp16": "float16", "fp64": "float64"}


def devices_here() -> list[str]:
    """Names of the devices of this machine: "cpu", and its accelerators with their numbers."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return ["cpu"]
    count = torch.accelerator.device_count()
    return ["cpu", accelerator.type, *(f"{accelerator.type}:{index}" for index in range(count))]


def as_device(name: str, device: Any) -> torch.device:
    """The device that somebody names, "meta" too; it can hold tensors.

    Raises:
        ValueError: no name of a device, or one that this machine lacks.
    """
    try:
        if isinstance(device, bool | float):
            raise TypeError  # torch takes numbers for those of accelerators
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, TypeError, AssertionError, NotImplementedError, ImportError):
        near = meant(device, devices_here())
        hint = f"; did you mean {near!r}?" if near else "; leave it out for the CPU."
        there = ", ".join(devices_here())
        raise ValueError(
            f"{name}={_shown(device)} is not on this machine, which has {there}{hint}"
        ) from None
    return found


def as_dtype(name: str, dtype: Any) -> torch.dtype:
    """The floating-point type that somebody names: torch.bfloat16, "bfloat16", "torch.bfloat16".

    Raises:
        ValueError: no type, or one that no model computes in.
    """
    if isinstance(dtype, str):
        word = dtype.removeprefix("torch.")
        found = _BY_NAME.get(_SHORT.get(word, word))
    else:
        found = dtype if dtype in _WEIGHTS else None
    if found is None:
        near = meant(str(dtype).removeprefix("torch."), _BY_NAME)
        hint = f"; did you mean {near!r}?" if near else "."
        known = ", ".join(map(repr, _BY_NAME))
        raise ValueError(f"{name} must be one of {known}, got {name}={_shown(dtype)}{hint}")
    return found


def _shown(value: Any) -> str:
    """What was given, and not a picture of all that it holds."""
    named = isinstance(value, str | int | float | torch.dtype | torch.device)
    return repr(value)[:60] if named else f"a {type(value).__name__}"
