"""Layers: attention with a pattern, positions, feed-forward, and stacks of them."""

from foveal.layers.attention import SelfAttention
from foveal.layers.cross_attention import CrossAttention
from foveal.layers.feed_forward import FeedForward
from foveal.layers.halo import HaloAttention
from foveal.layers.patch import PEG, ChanLayerNorm, DropPath, OverlappingPatchEmbed
from foveal.layers.relative import Relative, RelativeAttention
from foveal.layers.relative_position import RelPosEmb
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
    "Block",
    "Stack",
    "HaloAttention",
    "RelPosEmb",
    "DSSA",
    "SeparableAttention",
    "PEG",
    "OverlappingPatchEmbed",
    "ChanLayerNorm",
    "DropPath",
]
