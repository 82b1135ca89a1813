"""Who attends to whom: frozen dataclasses that can be drawn, counted, combined and tested."""

from foveal.patterns import heads as _heads  # noqa: F401 - found by its name
from foveal.patterns.axial import Axial
from foveal.patterns.base import Pattern
from foveal.patterns.block_diffusion import BlockDiffusion
from foveal.patterns.block_sparse import BlockSparse
from foveal.patterns.blocks import Blocks
from foveal.patterns.combine import Intersection, Union
from foveal.patterns.documents import Documents
from foveal.patterns.fixed import Fixed
from foveal.patterns.full import Full
from foveal.patterns.halo import Halo
from foveal.patterns.joined import Joined
from foveal.patterns.neighborhood import Neighborhood
from foveal.patterns.next_scale import NextScale
from foveal.patterns.packed import Packed
from foveal.patterns.part import Part
from foveal.patterns.prefix import Prefix
from foveal.patterns.pyramid import Pyramid
from foveal.patterns.shorten import Shorten
from foveal.patterns.strided import Strided
from foveal.patterns.text_image import TextImage
from foveal.patterns.tiling import Grid, Lookup, Runs, Scattered, TileGroup, Tiling
from foveal.patterns.window import SlidingWindow

__all__ = [
    "Pattern",
    "Full",
    "SlidingWindow",
    "Blocks",
    "Halo",
    "Neighborhood",
    "Axial",
    "BlockSparse",
    "Strided",
    "Fixed",
    "TextImage",
    "Pyramid",
    "Shorten",
    "Prefix",
    "NextScale",
    "BlockDiffusion",
    "Documents",
    "Packed",
    "Union",
    "Intersection",
    "Part",
    "Joined",
    "Tiling",
    "TileGroup",
    "Grid",
    "Lookup",
    "Runs",
    "Scattered",
]
