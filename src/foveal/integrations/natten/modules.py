"""natten's modules: its signature, its parameters by its names, drawn in its order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from foveal.common.checks import check_sizes
from foveal.common.meta import draw_truncated
from foveal.integrations.natten.checks import SIZES, check_rank
from foveal.integrations.natten.functional import neighborhood_attention_generic
from foveal.integrations.natten.rule import Rule
from foveal.layers.dropout import Dropout


class NeighborhoodAttentionGeneric(nn.Module):
    """Self-attention of tokens to the windows around them, with its projections.

    State dicts of natten load, and load there; those of old versions too, with their table `rpb`
    of relative positions where `rel_pos_bias` is True.

    Args:
        embed_dim: features of a token, of all heads together.
        num_heads: divides embed_dim.
        kernel_size, stride, dilation, is_causal: as in `na2d`.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        qk_scale: factor of q k^T; head_dim ** -0.5 when None.
        proj_drop: dropout of the output.
        rel_pos_bias: learn a table of relative positions, (heads, 2 * kernel - 1, ...), as natten
            had it until 0.17; there not with is_causal.
        attn_drop: dropout of the weights, which old versions took.
        dim: embed_dim by its old name.

    Raises:
        ValueError: sizes or options do not fit.
    """

    na_dim: ClassVar[int]

    def __init__(
        self,
        embed_dim: int | None = None,
        num_heads: int = 0,
        kernel_size: int | Sequence[int] = 0,
        stride: int | Sequence[int] = 1,
        dilation: int | Sequence[int] = 1,
        is_causal: bool | Sequence[bool] = False,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
        *,
        rel_pos_bias: bool = False,
        attn_drop: float = 0.0,
        dim: int | None = None,
    ) -> None:
        super().__init__()
        if (embed_dim is None) == (dim is None):
            raise ValueError(f"give embed_dim, or dim for it, got {embed_dim=}, {dim=}.")
        embed_dim = dim if embed_dim is None else embed_dim
        check_sizes(embed_dim=embed_dim, num_heads=num_heads)
        assert embed_dim is not None
        if embed_dim % num_heads:
            raise ValueError(f"num_heads must divide embed_dim, got {embed_dim=}, {num_heads=}.")
        rule = Rule.of(self.na_dim, kernel_size, stride, dilation, is_causal)
        self.kernel_size, self.stride, self.dilation, self.is_causal = rule
        self.embed_dim, self.num_heads = embed_dim, num_heads
        self.head_dim = embed_dim // num_heads
        self.scale = self.head_dim**-0.5 if qk_scale is None else qk_scale
        self.attn_drop_rate = attn_drop
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=qkv_bias)
        self.rpb: nn.Parameter | None
        self.register_parameter("rpb", self._make_rpb() if rel_pos_bias else None)
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.proj_drop = Dropout(proj_drop)

    def _make_rpb(self) -> nn.Parameter:
        table = torch.empty(self.num_heads, *(2 * kernel - 1 for kernel in self.kernel_size))
        return nn.Parameter(draw_truncated(table, std=0.02))

    def forward(self, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Attention of tokens to each other.

        Args:
            x: (batch, *size, embed_dim).
            key_mask: (batch, *size) bool, True = a real token.

        Returns:
            (batch, *size, embed_dim).
        """
        check_rank("x", x, self.na_dim + 2, f"batch, {SIZES[self.na_dim - 1]}, embed_dim")
        if x.shape[-1] != self.embed_dim:
            raise ValueError(
                f"x must have embed_dim = {self.embed_dim} features, got {tuple(x.shape)}."
            )
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim))
        query, key, value = qkv.unbind(-3)
        out = neighborhood_attention_generic(
            query,
            key,
            value,
            self.kernel_size,
            self.stride,
            self.dilation,
            self.is_causal,
            self.scale,
            key_mask=key_mask,
            rpb=self.rpb,
            dropout_p=self.attn_drop_rate if self.training else 0.0,
        )
        assert isinstance(out, Tensor)
        return self.proj_drop(self.proj(out.flatten(-2)))

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *rest: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        strict, errors = rest[1], rest[4]
        if strict and self.rpb is None and f"{prefix}rpb" in state_dict:
            errors.append(
                f"{prefix}rpb is a table of relative positions, for which "
                f"{type(self).__name__}(..., rel_pos_bias=True) has a place."
            )

    def extra_repr(self) -> str:
        return (
            f"head_dim={self.head_dim}, num_heads={self.num_heads}, "
            f"kernel_size={self.kernel_size}, stride={self.stride}, dilation={self.dilation}, "
            f"is_causal={self.is_causal}, has_bias={self.rpb is not None}"
        )


class NeighborhoodAttention1D(NeighborhoodAttentionGeneric):
    """Of sequences: see `NeighborhoodAttentionGeneric`."""

    na_dim = 1


class NeighborhoodAttention2D(NeighborhoodAttentionGeneric):
    """Of images: see `NeighborhoodAttentionGeneric`."""

    na_dim = 2


class NeighborhoodAttention3D(NeighborhoodAttentionGeneric):
    """Of clips and volumes: see `NeighborhoodAttentionGeneric`."""

    na_dim = 3
