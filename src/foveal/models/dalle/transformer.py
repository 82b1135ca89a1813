"""The transformer of DALL-E: layers over text and image with a choice of attention for each."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from foveal.caches import DecodingState
from foveal.layers.attention import SelfAttention
from foveal.layers.checks import Device
from foveal.layers.feed_forward import Activation, FeedForward
from foveal.layers.grid_rotary import GridRotary
from foveal.layers.residual import Branch, Branches, Kind, ResidualStack
from foveal.layers.token_shift import TokenShift
from foveal.models.dalle.attention_types import AttnType, pattern_of


class Around(nn.Module):
    """What surrounds the attention or feed-forward of a layer: norms, and a learned scale.

    Touvron et al., "Going deeper with Image Transformers" (2021), for the scale.
    """

    def __init__(self, dim: int, layer: int, sandwich: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.norm_out = nn.LayerNorm(dim) if sandwich else nn.Identity()
        start = 0.1 if layer <= 18 else 1e-5 if layer <= 24 else 1e-6
        self.scale = nn.Parameter(torch.full((dim,), start))

    def branch(self, inner: nn.Module, shift: TokenShift | None) -> Branch:
        """The residual branch with an attention or a feed-forward inside."""
        kind: Kind = "ff" if isinstance(inner, FeedForward) else "attn"
        return Branch(kind, self.norm, inner, self.norm_out, shift, self.scale)


class Layer(Branches):
    """Two branches of modules that live elsewhere."""

    def __init__(self, branches: list[Branch]) -> None:
        self.branches = branches

    __call__ = Branches.forward


class Transformer(ResidualStack):
    """Layers of attention and feed-forward over text followed by an image.

    The keywords are those of dalle-pytorch's Transformer; see DALLEConfig for their meaning.

    Args:
        dim: features of a token.
        depth: number of layers.
        text_length: words in front of the image, the start token included.
        image_grid: (height, width) of the image in tokens.
        attn_types: the attention of each layer.
        rotate_values: rotary positions turn the values too.
        Others as in DALLEConfig.

    Attributes:
        checkpointing: recompute each layer in the backward pass instead of keeping what it made.

    Raises:
        ValueError: layers share an id of attention but not its type.
    """

    def __init__(
        self,
        *,
        dim: int,
        depth: int,
        text_length: int,
        image_grid: tuple[int, int],
        attn_types: Sequence[AttnType] = ("full",),
        causal: bool = True,
        heads: int = 8,
        dim_head: int = 64,
        ff_mult: float = 4,
        activation: Activation = "geglu",
        kernel_size: int = 5,
        dilation: int = 1,
        reversible: bool = False,
        attn_dropout: float = 0.0,
        ff_dropout: float = 0.0,
        sandwich_norm: bool = False,
        shift_tokens: bool = False,
        rotary_emb: bool = True,
        rotate_values: bool = False,
        shared_attn_ids: Sequence[int] | None = None,
        shared_ff_ids: Sequence[int] | None = None,
    ) -> None:
        super().__init__((), nn.Identity(), reversible)
        self.text_length, self.grid = text_length, image_grid
        self.seq_len = text_length + math.prod(image_grid) - 1
        self.branches = nn.ModuleList(
            Around(dim, layer + 1, sandwich_norm) for layer in range(depth) for _ in "fg"
        )
        self.shift = TokenShift(dim, text_length, image_grid[1]) if shift_tokens else None
        rotary = GridRotary(text_length, image_grid, dim_head) if rotary_emb else False

        def attention(kind: AttnType, layer: int) -> nn.Module:
            pattern = pattern_of(
                kind,
                text_length,
                image_grid,
                causal=causal,
                kernel_size=kernel_size,
                dilation=dilation,
                seed=layer,
            )
            if pattern is None:
                return FeedForward(dim, ff_mult, activation, ff_dropout)
            return SelfAttention(
                dim,
                pattern,
                heads,
                dim_head,
                rotary=rotary,
                rotate_values=rotate_values,
                out_dropout=attn_dropout,
            )

        kinds = list(itertools.islice(itertools.cycle(attn_types), depth))
        attn_ids = _ids(shared_attn_ids, depth)
        _check_shared(attn_ids, kinds)
        ff_ids = _ids(shared_ff_ids, depth)
        firsts = {one: attn_ids.index(one) for one in dict.fromkeys(attn_ids)}
        self.attentions = nn.ModuleList(attention(kinds[i], i) for i in firsts.values())
        self.feed_forwards = nn.ModuleList(
            FeedForward(dim, ff_mult, activation, ff_dropout) for _ in dict.fromkeys(ff_ids)
        )
        # shared modules stand once in the state dict; the plan says which layer uses which
        places = [list(dict.fromkeys(ids)) for ids in (attn_ids, ff_ids)]
        self.plan = [
            (places[0].index(a), places[1].index(f)) for a, f in zip(attn_ids, ff_ids, strict=True)
        ]

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.plan)

    @property
    def blocks(self) -> list[Layer]:
        """The layers in the order in which they run, of modules that they may share."""
        around = [cast(Around, one) for one in self.branches]
        attentions, feed_forwards = list(self.attentions), list(self.feed_forwards)
        return [
            Layer(
                [
                    around[2 * i].branch(attentions[a], self.shift),
                    around[2 * i + 1].branch(feed_forwards[f], self.shift),
                ]
            )
            for i, (a, f) in enumerate(self.plan)
        ]

    def _reversible(self, x: Tensor, given: tuple[Tensor | None, ...]) -> Tensor:
        if self.training:
            return super()._reversible(x, given)
        one = other = x
        for branch in (branch for block in self.blocks for branch in block.branches):
            one, other = other, branch.add(one, branch.run(other, *given))
        return one + other

    def _close(self, x: Tensor) -> Tensor:
        return x / 2 if self.reversible else x

    def make_cache(
        self, batch: int, max_length: int | None = None, device: Device = None
    ) -> DecodingState:
        """As in ResidualStack, for a whole text and image by default."""
        return super().make_cache(batch, max_length or self.seq_len + 1, device)


def _ids(shared: Sequence[int] | None, depth: int) -> list[int]:
    return list(itertools.islice(itertools.cycle(shared or range(max(1, depth))), depth))


def _check_shared(ids: Sequence[int], kinds: Sequence[AttnType]) -> None:
    for layer, (one, kind) in enumerate(zip(ids, kinds, strict=True)):
        first = kinds[ids.index(one)]
        if kind != first:
            raise ValueError(
                f"layers that share attention must have one type, got {kind!r} in layer {layer} "
                f"but {first!r} before it under shared_attn_ids={one}."
            )
