"""The machine and the versions behind a number."""

from __future__ import annotations

import ctypes
import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from foveal.common.placing import devices_here
from foveal.common.processor import multiplies_bfloat16, processor_name
from foveal.version import __version__

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of <malloc.h>
_PACKAGES = ("torch", "accelerate", "numpy")


def describe_machine(device: torch.device | str = "cpu") -> dict[str, str]:
    """What a score or a timing should be read beside, as label -> text."""
    device = torch.device(device)
    facts = {
        "device": _device_name(device),
        "processor": f"{processor_name()}, {os.cpu_count()} cores",
        "threads": str(torch.get_num_threads()),
        "system": f"{platform.system()} {platform.release()} ({platform.machine()})",
        "foveal": __version__,
        "Python": platform.python_version(),
    }
    for package in _PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    return facts


def pick_device(name: str = "auto") -> torch.device:
    """The device that somebody names: "auto" for the accelerator of this machine, or the CPU.

    Raises:
        ValueError: no name of a device, or one that this machine lacks.
    """
    there = devices_here()
    if name == "auto":
        return torch.device(there[min(1, len(there) - 1)])
    if name not in there:
        raise ValueError(
            f"device={name!r} is not on this machine, which has {', '.join(there)}; "
            "use --device auto for the fastest."
        )
    return torch.device(name)


def keep_freed_memory() -> bool:
    """Have the C library keep freed memory for what comes next; whether it does.

    glibc gives large buffers back to the system, which clears them anew at the next step: a tenth
    of a training step on a CPU. The process then never shrinks, so this is for programs that
    train, and not for a library.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1))


def native_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 faster than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return multiplies_bfloat16()
    return False


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
