"""The classes of vit_pytorch.sep_vit 1.26.11, with its parameters and its mathematics.

Differs from the package in: images of any size; lists where it wants tuples. As there, a SepViT
accepts window_size and dim_head and uses neither: windows are 7 and heads 32 wide. foveal.SepViT
honours both.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from foveal.compat.vit_pytorch import network
from foveal.layers import patch
from foveal.layers.patch import ChanLayerNorm
from foveal.layers.separable import DSSA

__all__ = [
    "SepViT",
    "Transformer",
    "DSSA",
    "FeedForward",
    "PEG",
    "OverlappingPatchEmbed",
    "ChanLayerNorm",
    "cast_tuple",
]

FeedForward = network.FeedForward


def cast_tuple(val: Any, length: int = 1) -> tuple[Any, ...]:
    """A tuple as it is, anything else `length` times."""
    return val if isinstance(val, tuple) else (val,) * length


class PEG(patch.PEG):
    """Positions from a depthwise convolution; see layers.PEG."""


class OverlappingPatchEmbed(patch.OverlappingPatchEmbed):
    """A strided convolution whose patches overlap.

    Args:
        dim_in, dim_out: channels.
        stride: pixels from one patch to the next.
    """

    def __init__(self, dim_in: int, dim_out: int, stride: int = 2) -> None:
        super().__init__(dim_in, dim_out, stride)


class Transformer(network.Stage):
    """Blocks of separable attention and feed-forward layers, in windows of 7.

    Args:
        dim, heads, dim_head: channels, and attention heads and the features of each.
        depth: number of blocks.
        ff_mult: hidden features of the feed-forward layers, as a multiple.
        dropout: on attention weights and features.
        norm_output: end in a layer norm.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        dim_head: int = 32,
        heads: int = 8,
        ff_mult: float = 4,
        dropout: float = 0.0,
        norm_output: bool = True,
    ) -> None:
        super().__init__(dim, (0.0,) * depth, dim_head, heads, ff_mult, dropout, norm_output)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, dim, height, width) -> same."""
        return super().forward(x)


class SepViT(network.SepViT):
    """Image classifier over separable attention; see foveal.SepViT.

    Args:
        num_classes: outputs of the classifier.
        dim: features of the first stage; each later stage doubles them.
        depth: blocks of each stage.
        heads: attention heads, for all stages or each.
        window_size, dim_head: ignored, as in the package.
        ff_mult: hidden features of the feed-forward layers, as a multiple.
        channels: of an image.
        dropout: on attention weights and features.

    Raises:
        ValueError: sizes that do not fit.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        dim: int,
        depth: tuple[int, ...],
        heads: int | tuple[int, ...],
        window_size: int | tuple[int, ...] = 7,
        dim_head: int = 32,
        ff_mult: float = 4,
        channels: int = 3,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            dim=dim,
            depth=depth,
            heads=heads,
            ff_mult=ff_mult,
            channels=channels,
            dropout=dropout,
        )
