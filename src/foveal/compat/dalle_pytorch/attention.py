"""The attention layers of dalle-pytorch 1.6.6, over `attend`.

Differs from the package in: no sequence is padded; a text mask holds for text too; decoding is
cached in every layer; images of any rectangle; "sparse" needs no DeepSpeed.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from inspect import isfunction
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.common.arguments import checked
from foveal.common.checks import as_bool
from foveal.compat.helpers import exists
from foveal.layers.attention import SelfAttention
from foveal.layers.checks import check_sizes
from foveal.layers.grid_rotary import Rotation
from foveal.models.dalle.attention_types import block_sparse, pattern_of
from foveal.patterns import BlockSparse, Full, Pattern

__all__ = [
    "Attention",
    "SparseConvCausalAttention",
    "SparseAxialCausalAttention",
    "SparseAttention",
    "exists",
    "uniq",
    "default",
    "max_neg_value",
    "stable_softmax",
    "apply_pos_emb",
]

Grid = int | tuple[int, int]


class Attention(SelfAttention):
    """Multi-head self-attention; dense, or over any pattern.

    Args:
        dim: features in and out.
        seq_len: most tokens; one more is taken, for the start token.
        causal: tokens read no later tokens.
        heads, dim_head: number of heads and their features.
        dropout: on the output.
        stable: accepted for compatibility; the softmax is always computed stably.
        static_mask: (tokens, tokens) bool, True = may be read.
        pattern: who reads whom, in place of causal and static_mask.
        rotate_values: as in SelfAttention.

    Raises:
        ValueError: sizes that make no sense, or a pattern whose own heads are not `heads`.
    """

    @checked
    def __init__(
        self,
        dim: int,
        seq_len: int,
        causal: Any = True,
        heads: int = 8,
        dim_head: int | None = 64,
        dropout: float = 0.0,
        stable: bool = False,
        static_mask: Tensor | None = None,
        *,
        pattern: Pattern | None = None,
        rotate_values: bool = True,
    ) -> None:
        check_sizes(seq_len=seq_len)
        causal = _as_causal(causal)
        pattern = _pattern(causal, static_mask) if pattern is None else pattern
        options: Any = {"rotate_values": rotate_values, "out_dropout": dropout}
        super().__init__(dim, pattern, heads, dim_head, rotary=False, **options)
        self.seq_len, self.causal, self.stable = seq_len, causal, stable

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        mask: Tensor | None = None,
        rotary_pos_emb: Tensor | Rotation | None = None,
        cache: dict[Any, Any] | None = None,
        cache_key: Any = None,
    ) -> Tensor:
        """(batch, tokens, dim) -> same; a token costs what it reads, no sequence is padded.

        Args:
            mask: (batch, any) bool, True = real, for the first tokens; those beyond are real.
                Keys that are not real are read by nobody, neither by text nor by image.
            rotary_pos_emb: angles (1, tokens, features) from position 0 on; see Rotation.
            cache: decoding state of several layers. cache["offset"], counted by the caller, is
                the number of tokens seen before; x holds the next ones.
            cache_key: the layer's own key in the cache.

        Raises:
            ValueError: more tokens than seq_len + 1, a mask that does not fit, or a cache that
                is not at its offset.
        """
        offset = 0 if cache is None else cache.get("offset", 0)
        self._check(x, mask, offset)
        if isinstance(rotary_pos_emb, Tensor):
            rotary_pos_emb = Rotation.of(rotary_pos_emb, self.dim_head)
        if cache is None:
            return super().forward(x, _fit(mask, x.shape[1]), rotary_pos_emb)
        if offset == 0:
            empty = self.make_cache(x.shape[0], self.seq_len + 1, x.device)
            real = _fit(mask, x.shape[1])
            out, cache[cache_key] = self.prefill(x, empty, real, rotary_pos_emb)
            return out
        state = cache.get(cache_key)
        if state is None or state.position != offset:
            at = "nothing" if state is None else f"{state.position} tokens"
            raise ValueError(
                f"the cache under {cache_key!r} must hold as many tokens as cache['offset'] = "
                f"{offset}, got {at}; add the tokens of each call to cache['offset']."
            )
        steps = []
        for token in x.split(1, 1):
            real = _fit(mask, state.position + 1)
            out, state = self.step(token, state, real, rotary_pos_emb)
            steps.append(out)
        return torch.cat(steps, 1)

    def _check(self, x: Tensor, mask: Tensor | None, offset: int) -> None:
        if torch.compiler.is_compiling():
            return
        end = offset + x.shape[1]
        if end > self.seq_len + 1:
            raise ValueError(
                f"x must hold at most seq_len + 1 = {self.seq_len + 1} tokens, got {end}; build "
                "the layer with a larger seq_len."
            )
        if mask is not None and (mask.dtype != torch.bool or mask.shape[:1] != x.shape[:1]):
            raise ValueError(
                f"mask must be (batch, tokens) bool with batch={x.shape[0]}, True = real; got "
                f"shape {tuple(mask.shape)} of {mask.dtype}."
            )


def _fit(mask: Tensor | None, length: int) -> Tensor | None:
    """A mask of the first tokens (batch, any) -> one of `length` tokens."""
    if mask is None:
        return None
    return F.pad(mask[:, :length], (0, max(0, length - mask.shape[1])), value=True)


def _as_causal(causal: Any) -> bool:
    try:
        return as_bool("causal", causal)
    except ValueError as error:
        raise ValueError(
            f"{str(error)[:-1]}; the Attention(dim, heads, dim_head) of hourglass-transformer-"
            "pytorch is foveal.compat.hourglass_transformer_pytorch.Attention."
        ) from None


def _pattern(causal: bool, static_mask: Tensor | None) -> Pattern:
    if static_mask is None:
        return Full(causal)
    return BlockSparse(static_mask, block_size=1, causal=causal)


def image_places(seq_len: int, image_size: Grid) -> tuple[int, tuple[int, int]]:
    """(text_length, (height, width)) of a layer; the start token counts as text.

    Raises:
        ValueError: the image does not fit into the sequence.
    """
    grid = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    height, width = grid
    check_sizes(seq_len=seq_len, image_height=height, image_width=width)
    text_length = seq_len + 1 - height * width
    if text_length < 0:
        raise ValueError(
            f"seq_len + 1 = {seq_len + 1} must hold the image of {height} x {width} = "
            f"{height * width} tokens, got {seq_len=}, {image_size=}."
        )
    return text_length, (height, width)


class SparseConvCausalAttention(Attention):
    """Text reads text; a pixel reads all text and the kernel-sized window that ends at it.

    Args:
        dim, seq_len, heads, dim_head, dropout, stable: as in Attention.
        image_size: (height, width) of the image in tokens, or an int for a square.
        kernel_size, dilation: of the window; its last pixel is the query.
        kwargs: causal=False reads all text everywhere and the centred window; rotate_values as
            in Attention; others are ignored, as the package ignores all.

    Raises:
        ValueError: an even kernel_size, or an image that does not fit into seq_len.
    """

    @checked
    def __init__(
        self,
        dim: int,
        seq_len: int,
        image_size: Grid = 32,
        kernel_size: int = 5,
        dilation: int = 1,
        heads: int = 8,
        dim_head: int | None = 64,
        dropout: float = 0.0,
        stable: bool = False,
        **kwargs: Any,
    ) -> None:
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size=}.")
        own = {"kernel_size": kernel_size, "dilation": dilation}
        over = _over_image("conv_like", seq_len, image_size, kwargs, **own)
        super().__init__(dim, seq_len, over.causal, heads, dim_head, dropout, stable, **over.rest)
        self.image_size, self.kernel_size, self.dilation = image_size, kernel_size, dilation


class SparseAxialCausalAttention(Attention):
    """Text reads text; a pixel reads all text and its row or its column.

    Args:
        dim, seq_len, heads, dim_head, dropout, stable: as in Attention.
        image_size: (height, width) of the image in tokens, or an int for a square.
        axis: 0 = pixels of the same row, 1 = pixels of the same column.
        kwargs: causal=False reads all text everywhere and the whole row or column; others as in
            SparseConvCausalAttention.

    Raises:
        ValueError: axis is neither 0 nor 1, or the image does not fit into seq_len.
    """

    @checked
    def __init__(
        self,
        dim: int,
        seq_len: int,
        image_size: Grid = 32,
        axis: int = 0,
        heads: int = 8,
        dim_head: int | None = 64,
        dropout: float = 0.0,
        stable: bool = False,
        **kwargs: Any,
    ) -> None:
        if axis not in (0, 1):
            raise ValueError(f"axis must be 0 (along a row) or 1 (along a column), got {axis=}.")
        kind = "axial_col" if axis else "axial_row"
        over = _over_image(kind, seq_len, image_size, kwargs)
        super().__init__(dim, seq_len, over.causal, heads, dim_head, dropout, stable, **over.rest)
        self.image_size, self.axis = image_size, axis


class _OverImage(NamedTuple):
    """What a layer over text and image gives to Attention."""

    causal: bool
    rest: dict[str, Any]


def _over_image(
    kind: str, seq_len: int, image_size: Grid, kwargs: dict[str, Any], **window: int
) -> _OverImage:
    causal = _as_causal(kwargs.get("causal", True))
    text_length, grid = image_places(seq_len, image_size)
    pattern = pattern_of(kind, text_length, grid, causal=causal, **window)
    turned = as_bool("rotate_values", kwargs.get("rotate_values", True))
    return _OverImage(causal, {"pattern": pattern, "rotate_values": turned})


class SparseAttention(Attention):
    """Block-sparse attention with DeepSpeed's variable layout, on any device, without DeepSpeed.

    Windows of four blocks, the blocks of the text read by all, and random blocks.

    Args:
        args, kwargs: as in Attention; and seed=0, of the random blocks.
        block_size: tokens in a block.
        text_seq_len: length of the text, whose blocks every token reads.
        num_random_blocks: random blocks a row; None = seq_len // block_size // 4.
    """

    @checked
    def __init__(
        self,
        *args: Any,
        block_size: int = 16,
        text_seq_len: int = 256,
        num_random_blocks: int | None = None,
        **kwargs: Any,
    ) -> None:
        seed = kwargs.pop("seed", 0)
        call = inspect.signature(Attention.__init__).bind(self, *args, **kwargs)
        call.apply_defaults()
        given = call.arguments
        check_sizes(seq_len=given["seq_len"], block_size=block_size, text_seq_len=text_seq_len)
        if given["static_mask"] is not None:
            raise ValueError("static_mask does not combine with a block layout; use Attention.")
        causal = _as_causal(given["causal"])
        given["pattern"] = block_sparse(
            text_seq_len, given["seq_len"], causal, seed, block_size, num_random_blocks
        )
        super().__init__(*call.args[1:], **call.kwargs)
        self.block_size = block_size


# -- helpers ------------------------------------------------------------------------------------


def uniq(arr: Iterable[Any]) -> Any:
    """The different elements, in the order in which they come first."""
    return dict.fromkeys(arr, True).keys()


def default(val: Any, d: Any) -> Any:
    """`val`, or where it is None `d`, which a function makes."""
    if val is not None:
        return val
    return d() if isfunction(d) else d


def max_neg_value(t: Tensor) -> float:
    """The lowest finite value of a tensor's dtype."""
    return torch.finfo(t.dtype).min


def stable_softmax(t: Tensor, dim: int = -1, alpha: float = 32**2) -> Tensor:
    """softmax(t); torch's subtracts the maximum, so there is nothing for `alpha` to help."""
    return t.softmax(dim)


def apply_pos_emb(pos_emb: Tensor, qkv: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Turn queries, keys and values (..., tokens, features) by angles (1, any, features)."""
    rotation = Rotation.of(pos_emb, qkv[0].shape[-1]).at(0, qkv[0].shape[-2])
    turned = (rotation.turn(t.unsqueeze(-2)) for t in qkv)
    return tuple(t.squeeze(-2) for t in turned)
