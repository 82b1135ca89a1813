"""The machine that a measurement was made on, and how fast it can be at most."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import time
from typing import Any

import torch

from foveal.common.processor import processor_name

PEERS = (
    "halonet-pytorch",
    "dalle-pytorch",
    "h-transformer-1d",
    "vit-pytorch",
    "hourglass-transformer-pytorch",
    "timm",
    "natten",
)


def describe(device: str) -> dict[str, Any]:
    """Processor, threads, versions and date."""
    from foveal.ops.native import build

    return {
        "processor": torch.cuda.get_device_name() if device == "cuda" else processor_name(),
        "device": device,
        "threads": torch.get_num_threads(),
        "vectors": build.level() if device == "cpu" else "",
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "packages": _versions(),
        "date": datetime.date.today().isoformat(),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in ("foveal", *PEERS):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def limits(device: str) -> dict[str, float]:
    """FLOP/s of matrix products by dtype and bytes/s of a copy (read and write), best of some."""
    sizes = (8192,) if device == "cuda" else (384, 1536)
    found = {dtype: _products(dtype, sizes, device) for dtype in ("float32", "bfloat16")}
    source = torch.zeros(1 << 26, device=device)
    target = torch.zeros_like(source)
    found["bytes"] = 2 * 4 * source.numel() / _best(lambda: target.copy_(source), device)
    return found


def _products(dtype: str, sizes: tuple[int, ...], device: str) -> float:
    """FLOP/s of square products, of the first size that takes long enough to be timed well.

    bfloat16 without instructions for it is a hundred times as slow: the last size took a minute.
    """
    rate = 0.0
    for size in sizes:
        x = torch.randn(size, size, device=device).to(getattr(torch, dtype))
        out = torch.empty_like(x)
        seconds = _best(lambda x=x, out=out: torch.mm(x, x, out=out), device)
        rate = 2 * size**3 / seconds
        if seconds > 0.05:
            break
    return rate


def _best(job: Any, device: str, rounds: int = 7) -> float:
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        job()
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best


def synchronize(device: str) -> None:
    """Wait until the device has done what it was told."""
    if device == "cuda":
        torch.cuda.synchronize()
