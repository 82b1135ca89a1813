"""Layers: attention with a pattern, positions, feed-forward, and stacks of them."""

from typing import Any

from foveal.common.lazy import provided
from foveal.layers.attention import RelativeAttention, SelfAttention
from foveal.layers.cross_attention import CrossAttention
from foveal.layers.feed_forward import FeedForward
from foveal.layers.halo import HaloAttention
from foveal.layers.hierarchical import CausalHAttention1D, HAttention1D, PreShiftTokens
from foveal.layers.hierarchical_cross import HCrossAttention1D
from foveal.layers.patch import PEG, ChanLayerNorm, DropPath, OverlappingPatchEmbed
from foveal.layers.position_bias import AlibiPositions, PositionBias, T5Positions
from foveal.layers.positions import Positions
from foveal.layers.relative import Relative
from foveal.layers.relative_position import RelPosEmb
from foveal.layers.residual import ResidualBlock, ResidualStack
from foveal.layers.reversible import ReversibleSequence
from foveal.layers.rotary import Rotary
from foveal.layers.separable import DSSA, SeparableAttention
from foveal.layers.stack import Block, Stack

__all__ = [
    "SelfAttention",
    "CrossAttention",
    "FeedForward",
    "Rotary",
    "Relative",
    "RelativeAttention",
    "Positions",
    "PositionBias",
    "AlibiPositions",
    "T5Positions",
    "ResidualBlock",
    "ResidualStack",
    "Block",
    "Stack",
    "HaloAttention",
    "RelPosEmb",
    "Attention",
    "SparseConvCausalAttention",
    "SparseAxialCausalAttention",
    "SparseAttention",
    "DSSA",
    "SeparableAttention",
    "HAttention1D",
    "CausalHAttention1D",
    "HCrossAttention1D",
    "PreShiftTokens",
    "ReversibleSequence",
    "PEG",
    "OverlappingPatchEmbed",
    "ChanLayerNorm",
    "DropPath",
]


def __getattr__(name: str) -> Any:
    return provided(name, "foveal.layers", __all__)  # the layers of dalle-pytorch
