"""The transformer of DALL-E: layers over text and image with a choice of attention for each."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from foveal.caches import DecodingState
from foveal.layers.attention import SelfAttention
from foveal.layers.checks import Device
from foveal.layers.feed_forward import Activation, FeedForward
from foveal.layers.grid_rotary import Rotation, check_rotary, text_image_angles
from foveal.layers.reversible import Half, reversible
from foveal.layers.token_shift import TokenShift
from foveal.layers.weights import device_of, is_traced, state_dtype
from foveal.models.dalle.attention_types import AttnType, pattern_of

FIRST = ("to_hidden", "to_qkv")
"""The first layer of a feed-forward, and of an attention."""

Apply = Callable[[int, Tensor], Tensor]


class Branch(nn.Module):
    """What surrounds the attention or feed-forward of a layer: norms, and a learned scale.

    Touvron et al., "Going deeper with Image Transformers" (2021), for the scale.
    """

    def __init__(self, dim: int, layer: int, sandwich: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.norm_out = nn.LayerNorm(dim) if sandwich else nn.Identity()
        start = 0.1 if layer <= 18 else 1e-5 if layer <= 24 else 1e-6
        self.scale = nn.Parameter(torch.full((dim,), start))


class Transformer(nn.Module):
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
        super().__init__()
        if rotary_emb:
            check_rotary(dim_head)
        self.text_length, self.grid = text_length, image_grid
        self.seq_len = text_length + math.prod(image_grid) - 1
        self.reversible, self.checkpointing = reversible, False
        self.branches = nn.ModuleList(
            Branch(dim, layer + 1, sandwich_norm) for layer in range(depth) for _ in "fg"
        )
        self.shift = TokenShift(dim, text_length, image_grid[1]) if shift_tokens else None
        self.rotary = rotary_emb
        self._rotations: dict[torch.device, Rotation] = {}
        self.dim_head = dim_head

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
                rotary=False,
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

    def inner(self, branch: int) -> nn.Module:
        """The attention or feed-forward inside a branch."""
        layer, which = divmod(branch, 2)
        modules = self.feed_forwards if which else self.attentions
        return modules[self.plan[layer][which]]

    def rotation(self, device: torch.device) -> Rotation | None:
        """The rotary positions on a device, or None."""
        if not self.rotary:
            return None
        if torch.compiler.is_compiling():
            found = self._rotations.get(device)
            return self._turning(device) if found is None else found
        if is_traced():
            return self._turning(device)
        if device not in self._rotations:
            with torch.inference_mode(False):  # training must be able to use the table later
                self._rotations[device] = self._turning(device)
        return self._rotations[device]

    def _turning(self, device: torch.device) -> Rotation:
        angles = text_image_angles(self.text_length, self.grid, self.dim_head, device)
        return Rotation.of(angles, self.dim_head)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(batch, tokens, dim) -> same; mask (batch, tokens) True = real."""
        rotation = self.rotation(x.device)

        def apply(branch: int, x: Tensor) -> Tensor:
            around = self._around(branch)
            y = around.norm(x)
            y = y if self.shift is None else self.shift(y)
            inner = self.inner(branch)
            y = inner(y, mask, rotation) if isinstance(inner, SelfAttention) else inner(y)
            return around.norm_out(y)

        if self.reversible and self.training:
            layers = [
                (self._half(apply, i), self._half(apply, i + 1))
                for i in range(0, 2 * self.depth, 2)
            ]
            return reversible(x, layers) / 2
        return self._run(x, apply)

    # -- decoding ---------------------------------------------------------------------------

    def make_cache(self, batch: int, device: Device = None) -> DecodingState:
        """An empty decoding state for `batch` rows; on the layers' device if None is given."""
        parts: list[Any] = []
        for branch in range(2 * self.depth):
            inner, own = self.inner(branch), list[Any]()
            like = inner.get_submodule(FIRST[isinstance(inner, SelfAttention)])
            if self.shift is not None:
                where = device or device_of(like)
                own.append(self.shift.make_cache(batch, state_dtype(like), where))
            if isinstance(inner, SelfAttention):
                own.append(inner.make_cache(batch, self.seq_len + 1, device))
            parts.append(DecodingState(own))
        return DecodingState(parts)

    def prefill(self, x: Tensor, cache: DecodingState) -> tuple[Tensor, DecodingState]:
        """First tokens: x (batch, tokens, dim) -> same, remembered in an empty cache."""
        rotation = self.rotation(x.device)

        def apply(branch: int, x: Tensor) -> Tensor:
            around, inner, state = self._around(branch), self.inner(branch), cache.parts[branch]
            y = around.norm(x)
            if self.shift is not None:
                y = self.shift.prefill(y, state.parts[0])
            if isinstance(inner, SelfAttention):
                y, state.parts[-1] = inner.prefill(y, state.parts[-1], rotary=rotation)
            else:
                y = inner(y)
            return around.norm_out(y)

        x = self._run(x, apply)
        cache.position += x.shape[1]
        return x, cache

    def step(self, x: Tensor, cache: DecodingState) -> tuple[Tensor, DecodingState]:
        """One more token: x (batch, 1, dim) -> same."""
        rotation = self.rotation(x.device)

        def apply(branch: int, x: Tensor) -> Tensor:
            around, inner, state = self._around(branch), self.inner(branch), cache.parts[branch]
            y = around.norm(x)
            if self.shift is not None:
                y = self.shift.step(y, state.parts[0])
            if isinstance(inner, SelfAttention):
                y, state.parts[-1] = inner.step(y, state.parts[-1], rotary=rotation)
            else:
                y = inner(y)
            return around.norm_out(y)

        x = self._run(x, apply)
        cache.position += 1
        return x, cache

    # -- parts ------------------------------------------------------------------------------

    def _around(self, branch: int) -> Branch:
        return cast(Branch, self.branches[branch])

    def _half(self, apply: Apply, branch: int) -> Half:
        """A branch of a reversible pair, its scale included."""
        around, inner = self._around(branch), self.inner(branch)
        own = (*around.parameters(), *inner.parameters())
        return Half(lambda x: apply(branch, x) * around.scale, own)

    def _run(self, x: Tensor, apply: Apply) -> Tensor:
        if self.reversible:
            first = second = x
            for i in range(0, 2 * self.depth, 2):
                first = self._add(first, apply(i, second), i)
                second = self._add(second, apply(i + 1, first), i + 1)
            return (first + second) / 2
        for i in range(0, 2 * self.depth, 2):
            if self.checkpointing and self.training:
                x = checkpoint(self._layer, x, apply, i, use_reentrant=False)
            else:
                x = self._layer(x, apply, i)
        return x

    def _layer(self, x: Tensor, apply: Apply, i: int) -> Tensor:
        x = self._add(x, apply(i, x), i)
        return self._add(x, apply(i + 1, x), i + 1)

    def _add(self, x: Tensor, y: Tensor, branch: int) -> Tensor:
        return torch.addcmul(x, y, self._around(branch).scale)


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
