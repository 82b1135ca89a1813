"""The attention layers of DALL-E: text followed by an image, over any pattern.

Thin shells over `attend`: a layer projects, turns by the positions, attends over its pattern and
projects back. Names, keywords and parameter names are those of dalle-pytorch 1.6.6.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.caches import AttentionCache
from foveal.common.arguments import checked
from foveal.layers.checks import (
    Device,
    check_dropout,
    check_sizes,
    head_size,
    join_heads,
)
from foveal.layers.grid_rotary import Rotation
from foveal.layers.linear import Linear
from foveal.layers.weights import device_of, num_weights, state_dtype
from foveal.ops import attend
from foveal.patterns import Axial, BlockSparse, Full, Neighborhood, Pattern, TextImage

Grid = int | tuple[int, int]


class Attention(nn.Module):
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
        rotate_values: rotary positions turn the values too, as dalle-pytorch does; False turns
            queries and keys only, as RoFormer (Su et al., 2021).

    Raises:
        ValueError: sizes that make no sense, or a pattern whose own heads are not `heads`.
    """

    @checked
    def __init__(
        self,
        dim: int,
        seq_len: int,
        causal: bool = True,
        heads: int = 8,
        dim_head: int | None = 64,
        dropout: float = 0.0,
        stable: bool = False,
        static_mask: Tensor | None = None,
        *,
        pattern: Pattern | None = None,
        rotate_values: bool = True,
    ) -> None:
        super().__init__()
        check_sizes(seq_len=seq_len)
        check_dropout(dropout)
        self.dim_head = head_size(dim, heads, dim_head)
        self.heads, self.seq_len, self.causal = heads, seq_len, causal
        self.stable, self.rotate_values = stable, rotate_values
        self.pattern = _pattern(causal, static_mask) if pattern is None else pattern
        if self.pattern.heads not in (None, heads):
            raise ValueError(
                f"the pattern has {self.pattern.heads} heads of its own, got {heads=}; they must "
                "be equal."
            )
        inner = heads * self.dim_head
        self.to_qkv = Linear(dim, inner * 3, bias=False)
        self.to_out = nn.Sequential(Linear(inner, dim), nn.Dropout(dropout))

    def extra_repr(self) -> str:
        return f"pattern={self.pattern}, heads={self.heads}"

    def forward(
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
            return self._attend(*self._project(x, rotary_pos_emb, 0), mask)
        if offset == 0:
            empty = self.make_cache(x.shape[0], self.seq_len + 1, x.device)
            out, cache[cache_key] = self.prefill(x, empty, rotary_pos_emb, mask)
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
            out, state = self.step(token, state, rotary_pos_emb, mask)
            steps.append(out)
        return torch.cat(steps, 1)

    # -- decoding ---------------------------------------------------------------------------

    def make_cache(
        self, batch: int, max_length: int | None = None, device: Device = None
    ) -> AttentionCache:
        """An empty decoding state for `batch` rows; on the layer's device if None is given."""
        return AttentionCache(
            self.pattern,
            batch,
            self.heads,
            self.dim_head,
            max_length,
            dtype=state_dtype(self.to_qkv),
            device=device or device_of(self.to_qkv),
        )

    def prefill(
        self,
        x: Tensor,
        cache: AttentionCache,
        rotation: Rotation | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, AttentionCache]:
        """The forward pass over the first tokens, remembered in an empty cache."""
        q, k, v = self._project(x, rotation, 0)
        return self._attend(q, k, v, mask), cache.prefill(k, v)

    def step(
        self,
        x: Tensor,
        cache: AttentionCache,
        rotation: Rotation | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, AttentionCache]:
        """One more token: x (batch, 1, dim) -> same."""
        q, k, v = self._project(x, rotation, cache.position)
        cache = cache.append(k, v)
        real = None if mask is None else _fit_mask(mask, cache.position)
        return self.to_out(join_heads(cache.attend(q, key_mask=real))), cache

    def flops(self, length: int) -> int:
        """Floating-point operations of a forward pass over `length` tokens."""
        weights = num_weights(self.to_qkv) * 4 // 3  # to_out has a third of them
        pairs = self.pattern.num_pairs(length)
        if self.pattern.heads is None:
            pairs *= self.heads
        return 2 * length * weights + 4 * self.dim_head * pairs

    # -- parts ------------------------------------------------------------------------------

    def _project(
        self, x: Tensor, rotation: Rotation | None, offset: int | Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v (batch, heads, tokens, dim_head)."""
        qkv = self.to_qkv(x).unflatten(-1, (-1, self.dim_head))
        if rotation is None:
            q, k, v = qkv.transpose(1, 2).chunk(3, 1)
            return q, k, v
        here = rotation.at(offset, x.shape[1])
        if self.rotate_values:
            q, k, v = here.turn(qkv).transpose(1, 2).chunk(3, 1)
            return q, k, v
        turning = 2 * self.heads
        q, k = here.turn(qkv[:, :, :turning]).transpose(1, 2).chunk(2, 1)
        return q, k, qkv[:, :, turning:].transpose(1, 2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        real = None if mask is None else _fit_mask(mask, k.shape[2])
        return self.to_out(join_heads(attend(q, k, v, self.pattern, key_mask=real)))

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


def _fit_mask(mask: Tensor, length: int) -> Tensor:
    """A mask of the first tokens -> one of `length` tokens."""
    return F.pad(mask[:, :length], (0, max(0, length - mask.shape[1])), value=True)


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
        causal: False reads all text everywhere and the centred window.

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
        *,
        causal: bool = True,
        rotate_values: bool = True,
    ) -> None:
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size=}.")
        text_length, grid = image_places(seq_len, image_size)
        corner = "corner" if causal else None
        image = Neighborhood(grid, kernel_size, dilation, causal=corner)  # type: ignore[arg-type]
        super().__init__(
            dim,
            seq_len,
            causal,
            heads,
            dim_head,
            dropout,
            stable,
            pattern=TextImage(text_length, image, causal_text=causal),
            rotate_values=rotate_values,
        )
        self.image_size, self.kernel_size, self.dilation = image_size, kernel_size, dilation


class SparseAxialCausalAttention(Attention):
    """Text reads text; a pixel reads all text and its row or its column.

    Args:
        dim, seq_len, heads, dim_head, dropout, stable: as in Attention.
        image_size: (height, width) of the image in tokens, or an int for a square.
        axis: 0 = pixels of the same row, 1 = pixels of the same column.
        causal: False reads all text everywhere and the whole row or column.

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
        *,
        causal: bool = True,
        rotate_values: bool = True,
    ) -> None:
        if axis not in (0, 1):
            raise ValueError(f"axis must be 0 (along a row) or 1 (along a column), got {axis=}.")
        text_length, grid = image_places(seq_len, image_size)
        image = Axial(grid, "column" if axis else "row", causal=causal)
        super().__init__(
            dim,
            seq_len,
            causal,
            heads,
            dim_head,
            dropout,
            stable,
            pattern=TextImage(text_length, image, causal_text=causal),
            rotate_values=rotate_values,
        )
        self.image_size, self.axis = image_size, axis


class SparseAttention(Attention):
    """Block-sparse attention with DeepSpeed's variable layout, on any device, without DeepSpeed.

    Windows of four blocks, the blocks of the text read by all, and random blocks.

    Args:
        dim, seq_len, causal, heads, dim_head, dropout, stable: as in Attention.
        block_size: tokens in a block.
        text_seq_len: length of the text, whose blocks every token reads.
        num_random_blocks: random blocks a row; None = seq_len // block_size // 4.
        seed: of the random blocks.
    """

    @checked
    def __init__(
        self,
        dim: int,
        seq_len: int,
        causal: bool = True,
        heads: int = 8,
        dim_head: int | None = 64,
        dropout: float = 0.0,
        stable: bool = False,
        static_mask: Tensor | None = None,
        *,
        block_size: int = 16,
        text_seq_len: int = 256,
        num_random_blocks: int | None = None,
        seed: int = 0,
        rotate_values: bool = True,
    ) -> None:
        check_sizes(seq_len=seq_len, block_size=block_size, text_seq_len=text_seq_len)
        if num_random_blocks is None:
            num_random_blocks = seq_len // block_size // 4
        if static_mask is not None:
            raise ValueError("static_mask does not combine with a block layout; use Attention.")
        layout = BlockSparse.variable(
            seq_len + 1,
            block_size,
            num_random_blocks=num_random_blocks,
            global_block_indices=range(math.ceil(text_seq_len / block_size)),
            attention="unidirectional" if causal else "bidirectional",
            seed=seed,
        )
        super().__init__(
            dim,
            seq_len,
            causal,
            heads,
            dim_head,
            dropout,
            stable,
            pattern=layout,
            rotate_values=rotate_values,
        )
        self.block_size = block_size
