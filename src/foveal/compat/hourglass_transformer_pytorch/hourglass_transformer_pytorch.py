"""The classes of hourglass-transformer-pytorch 0.0.6, with its parameters and its mathematics.

`stage.py` tells what that mathematics gets wrong; foveal.HourglassTransformerLM has it right.
Differs from the package in: any length works (there, only multiples of the shorten factors).
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.compat.helpers import cast_tuple, default, exists
from foveal.compat.hourglass_transformer_pytorch.stage import fill_empty
from foveal.layers.checks import join_heads
from foveal.layers.cross_attention import CrossAttention
from foveal.layers.dropout import Dropout
from foveal.layers.linear import project
from foveal.models.hourglass import resampling
from foveal.ops import attend
from foveal.ops.fused import fused_attention
from foveal.patterns import Full

__all__ = [
    "HourglassTransformerLM",
    "HourglassTransformer",
    "Transformer",
    "Attention",
    "FeedForward",
    "PreNormResidual",
    "NaiveDownsample",
    "NaiveUpsample",
    "LinearDownsample",
    "LinearUpsample",
    "get_hourglass_transformer",
    "pad_to_multiple",
    "exists",
    "default",
    "cast_tuple",
]


def pad_to_multiple(tensor: Tensor, multiple: int, dim: int = -1, value: float = 0) -> Tensor:
    """`value` at the end of a dimension (counted from the last), up to a multiple of its size."""
    missing = -tensor.shape[dim] % multiple
    return F.pad(tensor, (0, 0) * (-1 - dim) + (0, missing), value=value) if missing else tensor


def get_hourglass_transformer(
    dim: int,
    *,
    depth: Any,
    shorten_factor: Any,
    attn_resampling: bool,
    updown_sample_type: str,
    **kwargs: Any,
) -> Transformer | HourglassTransformer:
    """A Transformer for a depth that is an int, an HourglassTransformer for one of three.

    Raises:
        ValueError: another depth, or a shorten factor where nothing is shortened.
    """
    if isinstance(depth, int):
        if shorten_factor:
            raise ValueError(
                f"shorten_factor must be left out where depth is an int, got {shorten_factor=}, "
                f"{depth=}."
            )
        return Transformer(dim, depth=depth, **kwargs)
    return HourglassTransformer(
        dim,
        depth=depth,
        shorten_factor=2 if shorten_factor is None else shorten_factor,
        attn_resampling=attn_resampling,
        updown_sample_type=updown_sample_type,
        **kwargs,
    )


# -- resampling ---------------------------------------------------------------------------------


class NaiveDownsample(nn.Module):
    """The mean of each group of `shorten_factor` tokens."""

    def __init__(self, shorten_factor: int) -> None:
        super().__init__()
        self.shorten_factor = shorten_factor

    def forward(self, x: Tensor) -> Tensor:
        """(batch, groups * shorten_factor, dim) -> (batch, groups, dim)"""
        return x.unflatten(1, (-1, self.shorten_factor)).mean(2)


class NaiveUpsample(resampling.NaiveUpsample):
    """Every token `shorten_factor` times."""

    def __init__(self, shorten_factor: int) -> None:
        super().__init__(shorten_factor)
        self.shorten_factor = shorten_factor

    def forward(self, x: Tensor) -> Tensor:
        """(batch, groups, dim) -> (batch, groups * shorten_factor, dim)"""
        return super().forward(x)


class LinearDownsample(nn.Module):
    """A projection of each group of `shorten_factor` tokens side by side."""

    def __init__(self, dim: int, shorten_factor: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim * shorten_factor, dim)
        self.shorten_factor = shorten_factor

    def forward(self, x: Tensor) -> Tensor:
        """(batch, groups * shorten_factor, dim) -> (batch, groups, dim)"""
        return project(self.proj, x.unflatten(1, (-1, self.shorten_factor)).flatten(2))


class LinearUpsample(resampling.LinearUpsample):
    """A projection of every token to `shorten_factor` tokens."""

    def __init__(self, dim: int, shorten_factor: int) -> None:
        super().__init__(dim, shorten_factor)
        self.shorten_factor = shorten_factor

    def forward(self, x: Tensor) -> Tensor:
        """(batch, groups, dim) -> (batch, groups * shorten_factor, dim)"""
        return super().forward(x)


# -- layers -------------------------------------------------------------------------------------


class PreNormResidual(nn.Module):
    """x + fn(norm(x))."""

    def __init__(self, dim: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fn = fn

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """(batch, tokens, dim) -> same."""
        return self.fn(self.norm(x), **kwargs) + x


class Attention(CrossAttention):
    """Attention of x over itself, or over a context; without positions.

    A query that is left without any key reads the mean of all values, as in the package.

    Args:
        dim: features in and out.
        heads, dim_head: number of heads and their features.
        dropout: on the attention weights.
        causal: query i reads keys up to i; over a context of another length the last ones meet.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        dim_head: int = 64,
        dropout: float = 0.0,
        causal: bool = False,
    ) -> None:
        super().__init__(dim, heads, dim_head, False, dropout)
        self.causal = causal

    def forward(  # type: ignore[override]
        self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """(batch, tokens, dim) -> same.

        Args:
            context: (batch, keys, dim); x by default.
            mask: (batch, keys) bool, True = real.
        """
        q, (k, v) = self.queries(x), self.keys(x if context is None else context)
        dropout = self.dropout if self.training else 0.0
        queries, keys = q.shape[2], k.shape[2]
        some = None if mask is None else mask[:, None].expand(-1, queries, -1)
        if self.causal and (mask is not None or queries != keys):
            past = torch.ones(queries, keys, dtype=torch.bool, device=x.device)
            past = past.tril(keys - queries)[None]
            some = past if some is None else some & past
        if self.causal and queries != keys:
            assert some is not None
            read = some | ~some.any(-1, keepdim=True)
            out = fused_attention(q, k, v, attn_mask=read[:, None], dropout_p=dropout)
        else:
            out = attend(q, k, v, Full(self.causal), key_mask=mask, dropout_p=dropout)
        return project(self.to_out, join_heads(out if some is None else fill_empty(out, v, some)))


def FeedForward(dim: int, mult: float = 4, dropout: float = 0.0) -> nn.Sequential:  # noqa: N802
    """Linear, GELU, dropout, linear; `mult * dim` hidden features."""
    hidden = int(dim * mult)
    return nn.Sequential(
        nn.Linear(dim, hidden), nn.GELU(), Dropout(dropout), nn.Linear(hidden, dim)
    )


class Transformer(nn.Module):
    """Blocks of attention and feed-forward.

    Args:
        dim: features of a token.
        depth: number of blocks.
        causal, heads, dim_head: as in Attention.
        attn_dropout, ff_dropout: on attention weights, and on hidden features.
        ff_mult: hidden features over dim.
        norm_out: end in a LayerNorm.
    """

    def __init__(
        self,
        dim: int,
        *,
        depth: int,
        causal: bool = False,
        heads: int = 8,
        dim_head: int = 64,
        attn_dropout: float = 0.0,
        ff_mult: float = 4,
        ff_dropout: float = 0.0,
        norm_out: bool = False,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    PreNormResidual(dim, Attention(dim, heads, dim_head, attn_dropout, causal)),
                    PreNormResidual(dim, FeedForward(dim, ff_mult, ff_dropout)),
                ]
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim) if norm_out else nn.Identity()

    def forward(
        self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """(batch, tokens, dim) -> same; context and mask as in Attention."""
        for layer in self.layers:
            attn, ff = cast(nn.ModuleList, layer)
            x = ff(attn(x, context=context, mask=mask))
        return self.norm(x)


class HourglassTransformer(nn.Module):
    """Blocks at full length around an inner transformer at a `shorten_factor`-th of it.

    Args:
        dim, heads, dim_head, causal, norm_out: as in Transformer.
        depth: (blocks before, inner depth, blocks after).
        shorten_factor: for all levels, or one for each, outermost first.
        attn_resampling: attention inside each group when shortening and when expanding.
        updown_sample_type: "naive" or "linear".

    Raises:
        ValueError: another depth, or another updown_sample_type.
    """

    def __init__(
        self,
        dim: int,
        *,
        depth: Any,
        shorten_factor: Any = 2,
        attn_resampling: bool = True,
        updown_sample_type: str = "naive",
        heads: int = 8,
        dim_head: int = 64,
        causal: bool = False,
        norm_out: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(depth, tuple | list) or len(depth) != 3:
            raise ValueError(f"depth must be (before, inner, after), got {depth=}.")
        if updown_sample_type not in ("naive", "linear"):
            raise ValueError(
                f"updown_sample_type must be 'naive' or 'linear', got {updown_sample_type!r}."
            )
        before, inner, after = depth
        factor, inside = _split_factors(shorten_factor, inner)
        self.causal, self.shorten_factor = causal, factor
        sizes: dict[str, Any] = {"heads": heads, "dim_head": dim_head}
        naive = updown_sample_type == "naive"
        self.downsample = NaiveDownsample(factor) if naive else LinearDownsample(dim, factor)
        self.upsample = NaiveUpsample(factor) if naive else LinearUpsample(dim, factor)
        self.valley_transformer = get_hourglass_transformer(
            dim,
            depth=inner,
            shorten_factor=inside,
            attn_resampling=attn_resampling,
            updown_sample_type=updown_sample_type,
            causal=causal,
            **sizes,
        )
        within = [Transformer(dim, depth=1, **sizes) if attn_resampling else None for _ in "du"]
        self.attn_resampling_pre_valley, self.attn_resampling_post_valley = within
        self.pre_transformer = Transformer(dim, depth=before, causal=causal, **sizes)
        self.post_transformer = Transformer(dim, depth=after, causal=causal, **sizes)
        self.norm_out = nn.LayerNorm(dim) if norm_out else nn.Identity()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(batch, tokens, dim) -> same; mask (batch, tokens) bool, True = real."""
        length = x.shape[1]
        x = self.pre_transformer(x, mask=mask)
        fine = pad_to_multiple(x, self.shorten_factor, dim=-2)
        coarse, real = self._shortened(fine, mask)
        coarse = self.valley_transformer(coarse, mask=real)
        x = self._expanded(fine, coarse)[:, :length]
        return self.norm_out(self.post_transformer(x, mask=mask))

    def _shortened(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Coarse tokens (batch, groups, dim), and which of them hold anything real."""
        factor, late = self.shorten_factor, self.shorten_factor - 1
        real = None if mask is None else pad_to_multiple(mask, factor, value=False)
        if self.causal:
            x = F.pad(x, (0, 0, late, -late))
            real = None if real is None else F.pad(real, (late, -late), value=False)
        coarse = self.downsample(x)
        groups = None if real is None else real.unflatten(1, (-1, factor))
        if self.attn_resampling_pre_valley is not None:
            coarse = self.attn_resampling_pre_valley(
                coarse.flatten(0, 1)[:, None],
                x.unflatten(1, (-1, factor)).flatten(0, 1),
                mask=None if groups is None else groups.flatten(0, 1),
            ).view_as(coarse)
        return coarse, None if groups is None else groups.any(2)

    def _expanded(self, x: Tensor, coarse: Tensor) -> Tensor:
        x = self.upsample(coarse) + x
        if self.attn_resampling_post_valley is None:
            return x
        groups = x.unflatten(1, (-1, self.shorten_factor)).flatten(0, 1)
        return self.attn_resampling_post_valley(groups, coarse.flatten(0, 1)[:, None]).view_as(x)


def _split_factors(factor: Any, inner: Any) -> tuple[int, Any]:
    """The factor of a level, and those inside it."""
    if isinstance(factor, tuple | list):
        return factor[0], tuple(factor[1:]) or None
    return factor, None if isinstance(inner, int) else factor


class HourglassTransformerLM(nn.Module):
    """Language model over an hourglass, with learned positions.

    Args:
        num_tokens: size of the vocabulary.
        max_seq_len: longest sequence.
        depth: a number of blocks, or (before, inner depth, after).
        shorten_factor: as in HourglassTransformer; None = 2 where the depth is nested.
        Others as in HourglassTransformer.
    """

    def __init__(
        self,
        *,
        num_tokens: int,
        dim: int,
        max_seq_len: int,
        depth: Any,
        shorten_factor: Any = None,
        heads: int = 8,
        dim_head: int = 64,
        attn_resampling: bool = True,
        updown_sample_type: str = "naive",
        causal: bool = True,
    ) -> None:
        super().__init__()
        self.max_seq_len = max_seq_len
        self.token_emb = nn.Embedding(num_tokens, dim)
        self.pos_emb = nn.Embedding(max_seq_len, dim)
        self.transformer = get_hourglass_transformer(
            dim,
            depth=depth,
            shorten_factor=shorten_factor,
            attn_resampling=attn_resampling,
            updown_sample_type=updown_sample_type,
            dim_head=dim_head,
            heads=heads,
            causal=causal,
            norm_out=True,
        )
        self.to_logits = nn.Linear(dim, num_tokens)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens (batch, length) -> logits (batch, length, num_tokens).

        Args:
            mask: (batch, length) bool, True = real.

        Raises:
            ValueError: more tokens than max_seq_len.
        """
        if x.shape[1] > self.max_seq_len:
            raise ValueError(
                f"x must fit into max_seq_len={self.max_seq_len}, got {x.shape[1]} tokens."
            )
        places = torch.arange(x.shape[1], device=x.device)
        x = self.token_emb(x) + self.pos_emb(places)
        return project(self.to_logits, self.transformer(x, mask=mask))
