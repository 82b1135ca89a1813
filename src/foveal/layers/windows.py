"""Cutting a map into windows and joining them again, whatever its size."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

Pair = tuple[int, int]


def to_windows(x: Tensor, window: Pair) -> Tensor:
    """(batch, height, width, ...) -> (batch, rows, columns, window pixels, ...).

    The map is padded with zeros at its lower and right end.
    """
    bottom, right = -x.shape[1] % window[0], -x.shape[2] % window[1]
    if not (isinstance(bottom, int) and isinstance(right, int)) or bottom or right:
        x = pad(x, [0, 0] * (x.ndim - 3) + [0, right, 0, bottom])
    x = x.unflatten(2, (-1, window[1])).unflatten(1, (-1, window[0]))
    return x.transpose(2, 3).flatten(3, 4)


def from_windows(x: Tensor, window: Pair, size: Pair) -> Tensor:
    """(batch, rows, columns, window pixels, ...) -> (batch, height, width, ...)."""
    x = x.unflatten(3, window).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return x[:, : size[0], : size[1]]


def real_pixels(x: Tensor, window: Pair) -> Tensor | None:
    """Which pixels of the windows of x (batch, height, width, ...) are pixels of the map.

    (windows, window pixels) bool; None when the windows fit, as far as that is known.
    """
    height, width = x.shape[1], x.shape[2]
    known = isinstance(height, int) and isinstance(width, int)
    if known and height % window[0] == 0 and width % window[1] == 0:
        return None
    ones = torch.ones(1, height, width, dtype=torch.uint8, device=x.device)
    return to_windows(ones, window).flatten(0, 2) > 0
