"""Layers: attention with a pattern, positions, feed-forward, and stacks of them."""

from foveal.layers.attention import SelfAttention
from foveal.layers.cross_attention import CrossAttention
from foveal.layers.feed_forward import FeedForward
from foveal.layers.rotary import Rotary
from foveal.layers.stack import Block, Stack

__all__ = [
    "SelfAttention",
    "CrossAttention",
    "FeedForward",
    "Rotary",
    "Block",
    "Stack",
]
