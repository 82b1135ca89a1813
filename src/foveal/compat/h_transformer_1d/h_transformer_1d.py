"""The classes of h-transformer-1d 0.1.9, with its parameters and its mathematics.

`attention.py` tells what that mathematics gets wrong; foveal.HTransformer1D has it right.
Differs from the package in: any number of tokens up to max_seq_len is read by a causal layer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from foveal.common.checks import check_sizes
from foveal.compat.h_transformer_1d.attention import PackageAttention, turn
from foveal.compat.h_transformer_1d.reversible import ReversibleSequence, SequentialSequence
from foveal.compat.helpers import exists
from foveal.layers.hierarchical import PreShiftTokens, shift_tokens
from foveal.layers.linear import project

__all__ = [
    "HTransformer1D",
    "HAttention1D",
    "CausalHAttention1D",
    "FeedForward",
    "PreNorm",
    "PreShiftTokens",
    "ReversibleSequence",
    "SequentialSequence",
    "exists",
    "masked_aggregate",
    "shift",
    "cast_for_op",
    "flip_every_two",
]


class _Attention(PackageAttention):
    """What the two layers share: positions that are given, or none.

    Args:
        pos_emb: (n,) positions -> (n, features) angles, those of a pair twice.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        dim_head: int,
        block_size: int,
        pos_emb: nn.Module | None,
        eps: float,
        causal: bool,
    ) -> None:
        super().__init__(dim, heads, dim_head, block_size, causal)
        self.pos_emb, self.eps = pos_emb, eps

    def turned(self, x: Tensor) -> Tensor:
        if self.pos_emb is None:
            return x
        angles = self.pos_emb(torch.arange(x.shape[-2], device=x.device))
        count = angles.shape[-1]
        return torch.cat((turn(x[..., :count], angles[:, ::2]), x[..., count:]), -1)


class HAttention1D(_Attention):
    """Hierarchical attention of an encoder.

    Args:
        dim: features in and out.
        heads, dim_head: attention heads and the features of each.
        block_size: tokens of a block; a power of two.
        pos_emb: rotary positions, such as a RotaryEmbedding(dim_head), or None.
        eps: added to the sum of the weights.
        kwargs: ignored, as in the package.

    Raises:
        ValueError: block_size is no power of two.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 8,
        dim_head: int = 64,
        block_size: int = 16,
        pos_emb: nn.Module | None = None,
        eps: float = 1e-8,
        **kwargs: Any,
    ) -> None:
        super().__init__(dim, heads, dim_head, block_size, pos_emb, eps, causal=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(batch, tokens, dim) -> same; mask (batch, tokens) bool, True = real."""
        return super().forward(x, mask)


class CausalHAttention1D(_Attention):
    """Hierarchical attention of a decoder; keywords of `forward`, a mask too, are ignored.

    Args:
        max_seq_len: longest sequence.
        Others as in HAttention1D.
    """

    def __init__(
        self,
        dim: int,
        *,
        max_seq_len: int,
        heads: int = 8,
        dim_head: int = 64,
        block_size: int = 16,
        eps: float = 1e-8,
        pos_emb: nn.Module | None = None,
    ) -> None:
        super().__init__(dim, heads, dim_head, block_size, pos_emb, eps, causal=True)
        check_sizes(max_seq_len=max_seq_len)
        self.register_buffer("mask", package_mask(max_seq_len, block_size))

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:  # type: ignore[override]
        """(batch, tokens, dim) -> same."""
        return super().forward(x)

    def _check(self, padded: int, levels: int) -> None:
        """Within one block the package has no attention, but it has an answer."""


def package_mask(max_seq_len: int, block_size: int) -> Tensor:
    """Which tokens (levels, max_seq_len) a level does not serve: a buffer of the package."""
    here = torch.arange(max_seq_len)
    levels = max(1, (max_seq_len // block_size).bit_length() - 1)
    return torch.stack([here % 2**level != 2**level - 1 for level in range(levels)])


class RotaryEmbedding(nn.Module):
    """Angles of rotary positions, with the parameter of rotary-embedding-torch."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        # as that library computes them, to the last bit
        rates = 1.0 / (10_000 ** (torch.arange(0, dim, 2)[: dim // 2].float() / dim))
        self.freqs = nn.Parameter(rates, requires_grad=False)

    def forward(self, positions: Tensor) -> Tensor:
        """(n,) -> (n, dim), the angle of a pair twice; float32 whatever the weights' dtype."""
        angles = positions[:, None].float() * self.freqs.float()
        return angles.repeat_interleave(2, -1)


class PreNorm(nn.Module):
    """fn of the normalised features."""

    def __init__(self, dim: int, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """(batch, tokens, dim) -> same."""
        return self.fn(self.norm(x), **kwargs)


class FeedForward(nn.Module):
    """Linear, GELU, linear; `mult * dim` hidden features."""

    def __init__(self, dim: int, *, mult: float = 4) -> None:
        super().__init__()
        hidden = int(dim * mult)
        self.net = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, dim) -> same."""
        return project(self.net, x)


class HTransformer1D(nn.Module):
    """Language model, or encoder, over hierarchical attention.

    Args: as in foveal.HTransformer1D; `pos_emb` is ignored, positions are rotary.

    Raises:
        ValueError: max_seq_len is no power of two times block_size.
    """

    def __init__(
        self,
        *,
        num_tokens: int,
        dim: int,
        depth: int,
        max_seq_len: int,
        causal: bool = False,
        heads: int = 8,
        dim_head: int = 64,
        ff_mult: float = 4,
        block_size: int = 128,
        pos_emb: Any = None,
        reversible: bool = False,
        shift_tokens: bool = False,
    ) -> None:
        super().__init__()
        check_sizes(max_seq_len=max_seq_len, block_size=block_size)
        blocks, rest = divmod(max_seq_len, block_size)
        if rest or blocks & (blocks - 1):
            raise ValueError(
                f"max_seq_len must be a power of two times block_size, got {max_seq_len=}, "
                f"{block_size=}; foveal.HTransformer1D takes any."
            )
        self.max_seq_len = max_seq_len
        self.token_emb = nn.Embedding(num_tokens, dim)
        self.pos_emb = RotaryEmbedding(dim_head)
        sizes: dict[str, Any] = {
            "heads": heads,
            "dim_head": dim_head,
            "block_size": block_size,
            "pos_emb": self.pos_emb,
        }
        if causal:
            sizes["max_seq_len"] = max_seq_len

        def branch(fn: nn.Module) -> PreNorm:
            return PreNorm(dim, PreShiftTokens((0, 1), fn) if shift_tokens else fn)

        make = CausalHAttention1D if causal else HAttention1D
        layers = nn.ModuleList(
            nn.ModuleList([branch(make(dim, **sizes)), branch(FeedForward(dim, mult=ff_mult))])
            for _ in range(depth)
        )
        run = ReversibleSequence if reversible else SequentialSequence
        self.layers = run(layers, args_route={"mask": ((True, False),) * depth})
        self.to_logits = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, num_tokens))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens (batch, length) -> logits (batch, length, num_tokens).

        Args:
            mask: (batch, length) bool, True = real; a causal model ignores it.

        Raises:
            ValueError: more tokens than max_seq_len.
        """
        if x.shape[1] > self.max_seq_len:
            raise ValueError(
                f"x must fit into max_seq_len={self.max_seq_len}, got {x.shape[1]} tokens."
            )
        return project(self.to_logits, self.layers(self.token_emb(x), mask=mask))


# -- helpers ------------------------------------------------------------------------------------


def masked_aggregate(
    tensor: Tensor, mask: Tensor | None = None, dim: int = -1, average: bool = True
) -> Tensor:
    """Mean or sum along `dim` of what is real; zero where nothing is.

    mask: bool, True = real, over the first dimensions of `tensor`.
    """
    if mask is None:
        return tensor.mean(dim) if average else tensor.sum(dim)
    mask = mask.reshape(mask.shape + (1,) * (tensor.ndim - mask.ndim))
    total, count = tensor.masked_fill(~mask, 0.0).sum(dim), mask.sum(dim)
    if average:
        total = total / count.clamp(min=1).to(total.dtype)
    return total.masked_fill(count == 0, 0.0)


def shift(t: Tensor, amount: int, mask: Tensor | None = None) -> Tensor:
    """t (batch, tokens, dim) moved `amount` places to later tokens; zeros take their place."""
    return shift_tokens(t, (amount,), mask)


def cast_for_op(cast_type: torch.dtype, fn: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """fn, computed in `cast_type`; the result has the dtype that came in."""

    @wraps(fn)
    def inner(t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return fn(t.to(cast_type), *args, **kwargs).to(t.dtype)

    return inner


def flip_every_two(t: Tensor) -> Tensor:
    """Neighbours 2i and 2i + 1 along the second dimension change places."""
    return t.unflatten(1, (-1, 2)).flip(2).flatten(1, 2)
