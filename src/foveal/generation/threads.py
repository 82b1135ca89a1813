"""How many threads a step of decoding is worth."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch

SMALL = 1 << 22
"""Weights that one core has read from its caches before a second one has been woken."""
FEW_ROWS = 4


@contextlib.contextmanager
def fitting_threads(decoder: Any, rows: int, device: torch.device) -> Iterator[None]:
    """One thread while a small model makes few rows on a CPU; else as many as there are.

    A step is a hundred operations of microseconds each. Threads that wait for the next one keep
    the cores busy, and hold up the thread that computes where two of them share a core.

    Args:
        decoder: its size is asked of `num_parameters`, where it has that.
        rows: of the batch.
        device: where the steps run.
    """
    size = getattr(decoder, "num_parameters", None)
    before = torch.get_num_threads()
    is_small = isinstance(size, int) and size <= SMALL and rows <= FEW_ROWS
    if device.type != "cpu" or before == 1 or not is_small:
        yield
        return
    torch.set_num_threads(1)
    # that is for this thread, and for all that begin from now on, whose number it stays: not ours
    others = threading.Thread(target=torch.set_num_threads, args=(before,))
    others.start()
    others.join()
    try:
        yield
    finally:
        torch.set_num_threads(before)
