"""The transformer of dalle-pytorch 1.6.6 and its parts, with its parameters.

Differs from the package in: attention is that of `attention.py`, so every layer can be decoded;
"sparse" needs no DeepSpeed; sizes that are no ints are rounded down.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from foveal.compat.dalle_pytorch.attention import (
    Attention,
    SparseAttention,
    SparseAxialCausalAttention,
    SparseConvCausalAttention,
)
from foveal.compat.dalle_pytorch.reversible import ReversibleSequence, SequentialSequence
from foveal.compat.helpers import default, exists
from foveal.layers.dropout import Dropout
from foveal.layers.feed_forward import gelu
from foveal.layers.grid_rotary import text_image_angles
from foveal.layers.linear import project
from foveal.layers.token_shift import TokenShift

__all__ = [
    "Transformer",
    "DivideMax",
    "NonCached",
    "CachedAs",
    "LayerScale",
    "PreNorm",
    "GEGLU",
    "FeedForward",
    "PreShiftToken",
    "exists",
    "default",
    "cast_tuple",
]


def cast_tuple(val: Any, depth: int = 1) -> Any:
    """What can be iterated as it is, anything else `depth` times."""
    return val if isinstance(val, Iterable) else (val,) * depth


class DivideMax(nn.Module):
    """x over its largest entry along `dim`, which gets no gradient."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> same."""
        return x / x.amax(self.dim, keepdim=True).detach()


class NonCached(nn.Module):
    """A layer that reads the whole sequence each time; the cache keeps its inputs."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(
        self,
        x: Tensor,
        *,
        cache: dict[Any, Any] | None = None,
        cache_key: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        """The last tokens (batch, tokens, dim) -> same."""
        new = x.shape[-2]
        if cache is not None:
            before = cache.get(cache_key)
            x = cache[cache_key] = x if before is None else torch.cat((before, x), -2)
        return self.fn(x, **kwargs)[:, -new:]


class CachedAs(nn.Module):
    """A layer that is told its key in the cache."""

    def __init__(self, cache_key: Any, fn: nn.Module) -> None:
        super().__init__()
        self.cache_key, self.fn = cache_key, fn

    def forward(self, x: Tensor, *, cache: dict[Any, Any] | None = None, **kwargs: Any) -> Tensor:
        """(batch, tokens, dim) -> same."""
        return self.fn(x, cache=cache, cache_key=self.cache_key, **kwargs)


class LayerScale(nn.Module):
    """fn times a learned factor a feature, which starts the smaller the deeper the layer."""

    def __init__(self, dim: int, depth: int, fn: nn.Module) -> None:
        super().__init__()
        start = 0.1 if depth <= 18 else 1e-5 if depth <= 24 else 1e-6
        self.scale = nn.Parameter(torch.full((1, 1, dim), start))
        self.fn = fn

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """(batch, tokens, dim) -> same."""
        return self.fn(x, **kwargs) * self.scale


class PreNorm(nn.Module):
    """fn of the normalised features; `sandwich` normalises what it makes of them too."""

    def __init__(self, dim: int, fn: nn.Module, sandwich: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.norm_out = nn.LayerNorm(dim) if sandwich else nn.Identity()
        self.fn = fn

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """(batch, tokens, dim) -> same."""
        return self.norm_out(self.fn(self.norm(x), **kwargs))


class GEGLU(nn.Module):
    """x * gelu(gate) of features x | gate."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., 2 dim) -> (..., dim)"""
        x, gate = x.chunk(2, -1)
        return x * gelu(gate)


class FeedForward(nn.Module):
    """Linear, GEGLU, dropout, linear; `mult * dim` hidden features."""

    def __init__(self, dim: int, dropout: float = 0.0, mult: float = 4.0) -> None:
        super().__init__()
        hidden = int(dim * mult)
        self.net = nn.Sequential(
            nn.Linear(dim, 2 * hidden), GEGLU(), Dropout(dropout), nn.Linear(hidden, dim)
        )

    def forward(self, x: Tensor, cache: Any = None, cache_key: Any = None) -> Tensor:
        """(batch, tokens, dim) -> same; a cache is not needed."""
        return project(self.net, x)


class PreShiftToken(nn.Module):
    """Calls a layer on tokens with features of their neighbours; see layers.token_shift.

    As in the package, a text that is shorter than the full one is not shifted.

    Args:
        fn: the layer.
        image_size: side of the image in tokens.
        seq_len: most tokens, without the start token.
    """

    def __init__(self, fn: nn.Module, image_size: int, seq_len: int) -> None:
        super().__init__()
        self.fn, self.image_size, self.seq_len = fn, image_size, seq_len
        self.img_seq_len = image_size**2
        self.text_len = seq_len - self.img_seq_len + 1

    def forward(
        self,
        x: Tensor,
        cache: dict[Any, Any] | None = None,
        cache_key: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        """(batch, tokens, dim) -> what the layer makes of it."""
        if cache is not None:
            return self.fn(self._recall(x, cache, cache_key), cache=cache, **kwargs)
        if x.shape[1] < self.text_len:
            return self.fn(x, **kwargs)
        return self.fn(self._shift(x)(x), **kwargs)

    def _shift(self, x: Tensor) -> TokenShift:
        return TokenShift(x.shape[-1], self.text_len, self.image_size)

    def _recall(self, x: Tensor, cache: dict[Any, Any], key: Any) -> Tensor:
        """Shifted, with what the cache remembers of the tokens before x."""
        shift = self._shift(x)
        if key not in cache:
            cache[key] = shift.make_cache(len(x), x.dtype, x.device)
            return shift.prefill(x, cache[key])
        steps = [shift.step(token.clone(), cache[key]) for token in x.split(1, 1)]
        return torch.cat(steps, 1)


class Transformer(nn.Module):
    """Layers of attention and feed-forward over text followed by an image.

    Args:
        dim, depth: features of a token, and number of layers.
        seq_len: most tokens, without the start token.
        image_fmap_size: side of the image in tokens.
        sparse_attn, optimize_for_inference: accepted; the package ignores the one, and what the
            other wins it for is so here always.
        Others as in foveal.DALLE.

    Raises:
        ValueError: an unknown kind of attention; rotary positions or kinds for images without
            image_fmap_size; layers that share attention of two kinds.
    """

    pos_emb: Tensor | None

    def __init__(
        self,
        *,
        dim: int,
        depth: int,
        seq_len: int,
        reversible: bool = False,
        causal: bool = True,
        heads: int = 8,
        dim_head: int = 64,
        ff_mult: float = 4,
        attn_dropout: float = 0.0,
        ff_dropout: float = 0.0,
        attn_types: Any = None,
        image_fmap_size: int | None = None,
        sparse_attn: Any = False,
        stable: bool = False,
        sandwich_norm: bool = False,
        shift_tokens: bool = False,
        rotary_emb: bool = True,
        shared_attn_ids: Sequence[int] | None = None,
        shared_ff_ids: Sequence[int] | None = None,
        optimize_for_inference: bool = False,
    ) -> None:
        super().__init__()
        self.seq_len, self.image_fmap_size = seq_len, image_fmap_size
        if image_fmap_size is None and (rotary_emb or shift_tokens):
            raise ValueError(
                "rotary_emb and shift_tokens need image_fmap_size, got image_fmap_size=None; "
                "without an image both must be False."
            )
        types = ("full",) if attn_types is None else attn_types
        types = (types,) if isinstance(types, str) else tuple(types)
        sizes: dict[str, Any] = {
            "causal": causal,
            "seq_len": seq_len,
            "heads": heads,
            "dim_head": dim_head,
            "dropout": attn_dropout,
            "stable": stable,
        }
        attns: dict[int, tuple[nn.Module, str]] = {}
        ffs: dict[int, nn.Module] = {}
        layers = nn.ModuleList()
        each = (types, shared_attn_ids or range(depth), shared_ff_ids or range(depth))
        for i, (kind, a, f) in enumerate(_cycled(each, depth)):
            if a not in attns:
                attns[a] = _attention(kind, dim, image_fmap_size, sizes), kind
            attn, first = attns[a]
            if kind != first:
                raise ValueError(
                    f"layers that share attention must have one type, got {kind!r} in layer {i} "
                    f"but {first!r} before it under shared_attn_ids={a}."
                )
            ff = ffs.setdefault(f, FeedForward(dim, mult=ff_mult, dropout=ff_dropout))
            pair: list[nn.Module] = [CachedAs(f"attn_{i}", attn), ff]
            if shift_tokens:
                assert image_fmap_size is not None
                pair = [
                    CachedAs(f"preshift_{n}_{i}", PreShiftToken(fn, image_fmap_size, seq_len))
                    for n, fn in zip(("attn", "ff"), pair, strict=True)
                ]
            layers.append(
                nn.ModuleList(
                    LayerScale(dim, i + 1, PreNorm(dim, fn, sandwich_norm)) for fn in pair
                )
            )
        own, both = ((True, False),) * depth, ((True, True),) * depth
        routes = {"mask": own, "rotary_pos_emb": own, "cache": both}
        run = ReversibleSequence if reversible else SequentialSequence
        self.layers = run(layers, args_route=routes)
        angles = None
        if rotary_emb:
            assert image_fmap_size is not None
            side = image_fmap_size
            angles = text_image_angles(seq_len + 1 - side * side, (side, side), dim_head)[None]
        self.register_buffer("pos_emb", angles)

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """(batch, tokens, dim) -> same.

        Args:
            kwargs: mask (batch, any) bool, True = real, and cache, a dict that is empty at first
                and whose "offset" the caller counts.
        """
        return self.layers(x, rotary_pos_emb=self.pos_emb, **kwargs)


def _cycled(lists: Sequence[Any], depth: int) -> Any:
    return itertools.islice(zip(*map(itertools.cycle, lists), strict=False), depth)


def _attention(kind: str, dim: int, side: int | None, sizes: dict[str, Any]) -> Attention:
    kinds = ("full", "sparse", "axial_row", "axial_col", "conv_like")
    if kind not in kinds:
        raise ValueError(f"attn_types must be of {', '.join(kinds)}, got {kind!r}.")
    if kind == "full":
        return Attention(dim, **sizes)
    if kind == "sparse":
        return SparseAttention(dim, **sizes)
    if side is None:
        raise ValueError(f"attention {kind!r} needs image_fmap_size, got None.")
    if kind == "conv_like":
        return SparseConvCausalAttention(dim, image_size=side, **sizes)
    return SparseAxialCausalAttention(dim, image_size=side, axis=int(kind == "axial_col"), **sizes)
