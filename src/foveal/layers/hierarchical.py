"""The attention layers of H-Transformer-1D, and its shift of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from foveal.common.arguments import checked
from foveal.layers.attention import SelfAttention
from foveal.layers.checks import check_sizes, head_size
from foveal.layers.positions import Positions
from foveal.layers.rotary import Rotary
from foveal.layers.token_shift import shift_tokens
from foveal.patterns import Pyramid


class InterleavedRotary(Rotary):
    """Rotary positions that pair features 2i and 2i + 1, as h-transformer-1d's weights expect.

    The result stands in another order of features, which products of queries and keys do not see.
    """

    def forward(self, x: Tensor, offset: int | Tensor = 0, stride: int = 1) -> Tensor:
        halves = x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
        return super().forward(halves, offset, stride)


class HAttention1D(SelfAttention):
    """Hierarchical self-attention: near tokens one by one, far ones as means of clusters.

    Takes the weights of h-transformer-1d's layers; their buffers (`mask`, `pos_emb.freqs`) are
    accepted and ignored. Every real token reads every other.

    Args:
        dim: features in and out.
        heads, dim_head: attention heads and the features of each.
        block_size: clusters in a block, see patterns.Pyramid.
        pos_emb: positions on queries and keys (never on values): True, a Rotary to share, or a
            RotaryEmbedding of the public package, which is replaced by an equal one.
        eps: accepted for the package's sake; the softmax here needs none.
        causal, neighbors, queries: see patterns.Pyramid.
        relative_bias: learn a table of hierarchical relative positions: True = one a head,
            "shared" = one for all heads.
        kv_heads, dropout, softcap, sinks: as in SelfAttention.

    Raises:
        ValueError: sizes or options that make no sense.
    """

    @checked
    def __init__(
        self,
        dim: int,
        *,
        heads: int = 8,
        dim_head: int | None = 64,
        block_size: int = 16,
        pos_emb: bool | nn.Module | None = None,
        eps: float = 1e-8,
        causal: bool = False,
        neighbors: str = "adjacent",
        queries: str | None = None,
        relative_bias: bool | str = False,
        kv_heads: int | None = None,
        dropout: float = 0.0,
        softcap: float | None = None,
        sinks: bool = False,
    ) -> None:
        pattern = Pyramid(block_size, causal, neighbors, queries)
        rotary = _positions(pos_emb, head_size(dim, heads, dim_head))
        sizes = (heads, dim_head, kv_heads, rotary or False, dropout)
        options: Any = {"relative_bias": relative_bias, "softcap": softcap, "sinks": sinks}
        super().__init__(dim, pattern, *sizes, **options)
        self.register_load_state_dict_pre_hook(_drop_buffers)


class CausalHAttention1D(HAttention1D):
    """HAttention1D in which every token reads itself and all earlier ones, and can be decoded.

    Args:
        max_seq_len: accepted for the package's sake; any length works.
        Others as in HAttention1D.
    """

    @checked
    def __init__(
        self,
        dim: int,
        *,
        max_seq_len: int | None = None,
        heads: int = 8,
        dim_head: int | None = 64,
        block_size: int = 16,
        eps: float = 1e-8,
        pos_emb: bool | nn.Module | None = None,
        **options: Any,
    ) -> None:
        if max_seq_len is not None:
            check_sizes(max_seq_len=max_seq_len)
        super().__init__(
            dim,
            heads=heads,
            dim_head=dim_head,
            block_size=block_size,
            pos_emb=pos_emb,
            eps=eps,
            causal=True,
            **options,
        )


def _positions(pos_emb: bool | nn.Module | None, dim_head: int) -> Positions | None:
    if pos_emb is None or pos_emb is False:
        return None
    if isinstance(pos_emb, Positions):
        return pos_emb
    own = InterleavedRotary(dim_head)
    freqs = getattr(pos_emb, "freqs", None)
    expected = own.base ** (-torch.arange(0, dim_head, 2, device="cpu").float() / dim_head)
    known = pos_emb is True or (
        isinstance(freqs, Tensor) and freqs.shape == expected.shape and _are_close(freqs, expected)
    )
    if not known:
        raise ValueError(
            "pos_emb must be True, None, a foveal Rotary, or a RotaryEmbedding(dim_head) with its "
            f"default frequencies, got {type(pos_emb).__name__}."
        )
    return own


def _are_close(found: Tensor, expected: Tensor) -> bool:
    rounding = torch.finfo(found.dtype).eps if found.is_floating_point() else 0.0
    return torch.allclose(found.detach().cpu().float(), expected, rtol=max(1e-4, rounding))


def _drop_buffers(layer: nn.Module, state: dict, prefix: str, *_: Any) -> None:
    """Forget what the public layers store besides weights."""
    for name in ("mask", "pos_emb.freqs"):
        state.pop(prefix + name, None)


class PreShiftTokens(nn.Module):
    """Calls a layer on shifted tokens, so that it sees neighbours at no cost.

    Args:
        shifts: see `shift_tokens`; (0, 1) where the future must not be seen, (-1, 0, 1) else.
        fn: the layer; called as fn(x, **kwargs). `mask` among them keeps padding out.

    Raises:
        ValueError: no shift.
    """

    @checked
    def __init__(self, shifts: Sequence[int], fn: nn.Module) -> None:
        super().__init__()
        if not len(shifts):
            raise ValueError(f"shifts must name at least one shift, got {shifts=}; e.g. (0, 1).")
        self.shifts = tuple(shifts)
        self.fn = fn

    def extra_repr(self) -> str:
        return f"shifts={self.shifts}"

    def forward(self, x: Tensor, **kwargs: Any) -> Any:
        """(batch, tokens, dim) -> what the layer makes of it."""
        return self.fn(shift_tokens(x, self.shifts, kwargs.get("mask")), **kwargs)
