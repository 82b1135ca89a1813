"""Layers of maps that read rows around a pixel: they work on the own rows and those they read.

A layer computes what it always computes, of a map that is a little higher; what it says of the
rows that were added is cut away. Its zeros beyond the image are then where the image ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from foveal.layers.halo import HaloAttention
from foveal.layers.patch import as_map, tokens
from foveal.parallel.fetch import rows_of
from foveal.parallel.shares import Span, spans_of
from foveal.parallel.whole import Sizes

Layer = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Reach:
    """Which rows of a map a row of a layer's result reads.

    stride: rows from one that is kept to the next.
    before, after: rows read from before the first, and from after the last, of a unit.
    unit: rows that read the same ones: those of a block.
    """

    stride: int = 1
    before: int = 0
    after: int = 0
    unit: int = 1

    @property
    def local(self) -> bool:
        """Whether the result of the own rows needs no other, wherever a map is cut."""
        return self == Reach()

    def count(self, length: int) -> int:
        """Rows of the result of a map of this many."""
        if self.unit > 1:
            return -(-length // self.stride)
        return max(0, (length - 1 - self.after + self.before) // self.stride + 1)

    def kept(self, sizes: tuple[int, ...]) -> list[Span]:
        """Rows of the result for each rank: it has those whose place in the map it has."""
        length, total = sum(sizes), self.count(sum(sizes))
        ends = [
            0 if not b else total if b == length else -(-b // self.stride)
            for _, b in spans_of(sizes)
        ]
        ends = [min(end, total) for end in ends]
        return list(zip([0, *ends[:-1]], ends, strict=True))

    def read(self, kept: Span, length: int) -> Span:
        """Rows of the map for rows of the result; it begins where a unit and a stride do."""
        first = kept[0] * self.stride // self.unit * self.unit - self.before
        step = math.lcm(self.stride, self.unit)
        last = -(-((kept[1] - 1) * self.stride + 1) // self.unit) * self.unit + self.after
        return max(0, first // step * step), min(last, length)


def reach_of(layer: nn.Module) -> Reach | None:
    """What a layer reads along the height; None for one that is no layer of this kind.

    Raises:
        ValueError: it pads with something else than zeros, or reads rows in another way.
    """
    if isinstance(layer, HaloAttention):
        block, halo = layer.block_size[0], layer.halo_size[0]
        return Reach(layer.stride, halo, halo, block)
    if isinstance(layer, nn.Conv2d):
        if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            raise ValueError(
                "a convolution over shared rows must pad with zeros, by numbers, got "
                f"padding={layer.padding!r}, padding_mode={layer.padding_mode!r}."
            )
        span = layer.dilation[0] * (layer.kernel_size[0] - 1)
        return Reach(layer.stride[0], layer.padding[0], span - layer.padding[0])
    if isinstance(layer, nn.MaxPool2d | nn.AvgPool2d):
        return _pooling(layer)
    return None


def _pooling(layer: nn.MaxPool2d | nn.AvgPool2d) -> Reach:
    kernel, stride, padding = (
        side if isinstance(side, int) else side[0]
        for side in (layer.kernel_size, layer.stride, layer.padding)
    )
    if getattr(layer, "dilation", 1) != 1 or getattr(layer, "return_indices", False):
        raise ValueError(f"this pooling cannot be cut into rows: {layer}.")
    if layer.ceil_mode:
        if padding or kernel != stride:
            raise ValueError(
                f"pooling with ceil_mode is cut into rows where kernel and stride are alike, "
                f"got {layer}."
            )
        return Reach(stride, 0, 0, stride)
    return Reach(stride, padding, kernel - 1 - padding)


def around(layer: Layer, reach: Reach, sizes: Sizes, x: Tensor) -> Tensor:
    """A layer of the own rows of a map, with what it reads of those of other ranks.

    x (batch, dim, own rows, width) -> (batch, dim_out, own rows / stride, width / stride).

    Raises:
        ValueError: the whole map is too small for the layer.
    """
    ranks = sizes.image.ranks
    lengths = sizes.of(x.shape[2])
    kept, length = reach.kept(lengths), sum(lengths)
    total = kept[-1][1]
    if not total:
        raise ValueError(
            f"an image of {sum(sizes.image.lengths)} rows is too small: no row is left."
        )
    # a rank without a row computes one for nothing, so that it has a shape and a gradient
    worked = [(a, b) if a < b else (min(a, total - 1), min(a, total - 1) + 1) for a, b in kept]
    wanted = [reach.read(one, length) for one in worked]
    rows = as_map(rows_of(tokens(x), wanted, ranks, lengths, 1, "nothing"))
    first, count = kept[ranks.rank][0], kept[ranks.rank][1] - kept[ranks.rank][0]
    start = first - wanted[ranks.rank][0] // reach.stride if count else 0
    return layer(rows).narrow(2, start, count)


def aligned(layer: Layer, window: int, dim: int, sizes: Sizes, x: Tensor) -> Tensor:
    """A layer of whole windows: each is worked on where its first row is, and then goes home.

    x: (batch, own rows, width, dim) where `dim` is 1, (batch, dim, own rows, width) where 2.
    """
    ranks, lengths = sizes.image.ranks, sizes.of(x.shape[dim])
    length, spans = sum(lengths), spans_of(lengths)
    ends = [min(-(-b // window) * window, length) for _, b in spans]
    cut = list(zip([0, *ends[:-1]], ends, strict=True))
    found = layer(rows_of(x, cut, ranks, lengths, dim, "nothing"))
    return rows_of(found, spans, ranks, [b - a for a, b in cut], dim, "nothing")
