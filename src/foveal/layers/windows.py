"""Cutting a map into windows and joining them again, whatever its size."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from foveal.common.symbols import known, take_first
from foveal.patterns import Halo

Pair = tuple[int, int]


def fold(x: Tensor, first: int, last: int) -> Tensor:
    """Dimensions first ... last, of any shape, as one.

    With symbols it copies: whether a view would do depends on numbers, and asking for them would
    tie the graph to the sizes of the example.
    """
    return (x if known(*x.shape) else x.clone(memory_format=torch.contiguous_format)).flatten(
        first, last
    )


def to_windows(x: Tensor, window: Pair) -> Tensor:
    """(batch, height, width, ...) -> (batch, rows, columns, window pixels, ...).

    The map is padded with zeros at its lower and right end.
    """
    rows, columns = (-(-x.shape[1 + a] // window[a]) for a in (0, 1))
    # written so that symbols cancel: after padding, the height is `rows * window` to the compiler
    bottom, right = rows * window[0] - x.shape[1], columns * window[1] - x.shape[2]
    if not known(bottom, right) or bottom or right:
        x = pad(x, [0, 0] * (x.ndim - 3) + [0, right, 0, bottom])
    x = x.unflatten(2, (columns, window[1])).unflatten(1, (rows, window[0]))
    return fold(x.transpose(2, 3), 3, 4)


def from_windows(x: Tensor, window: Pair, size: Pair) -> Tensor:
    """(batch, rows, columns, window pixels, ...) -> (batch, height, width, ...)."""
    x = fold(x.unflatten(3, window).transpose(2, 3), 3, 4).flatten(1, 2)
    return take_first(take_first(x, 1, size[0]), 2, size[1])


def real_pixels(x: Tensor, window: Pair) -> Tensor | None:
    """Which pixels of the windows of x (batch, height, width, ...) are pixels of the map.

    (windows, window pixels) bool; None when the windows fit, as far as that is known.
    """
    height, width = x.shape[1], x.shape[2]
    if known(height, width) and height % window[0] == 0 and width % window[1] == 0:
        return None
    ones = torch.ones(1, height, width, dtype=torch.uint8, device=x.device)
    return to_windows(ones, window).flatten(0, 2) > 0


def windows_alone(window: Pair) -> Halo:
    """Each pixel reads its window: the pattern of a map of three windows a side."""
    height, width = window
    return Halo((3 * height, 3 * width), window, 0)
