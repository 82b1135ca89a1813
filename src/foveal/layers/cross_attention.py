"""Attention from one sequence to another."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.caches import AttentionCache
from foveal.common.arguments import checked
from foveal.common.checks import check_dense
from foveal.common.symbols import take_first
from foveal.layers.checks import (
    Device,
    check_dropout,
    head_size,
    join_heads,
    split_heads,
)
from foveal.layers.linear import project
from foveal.layers.packing import Context
from foveal.layers.positions import Positions
from foveal.layers.relative import Relative, RelativeTerms
from foveal.layers.rotary import Rotary
from foveal.layers.weights import device_of, state_dtype
from foveal.ops import attend
from foveal.patterns import Full, Pattern


class CrossAttention(nn.Module):
    """Multi-head attention of queries over the tokens of another sequence.

    For sequences of different lengths, such as the fine and the coarse one of Hourglass.

    Args:
        dim: features of both sequences, and of the output.
        heads, dim_head: as in SelfAttention.
        rotary: as in SelfAttention.
        dropout: on the attention weights.

    Attributes:
        stride: what a step of the finer sequence is in the positions of relative attention.

    Raises:
        ValueError: sizes that do not divide.
    """

    @checked
    def __init__(
        self,
        dim: int,
        heads: int = 8,
        dim_head: int | None = 64,
        rotary: bool | Positions | Relative = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dim_head = head_size(dim, heads, dim_head)
        self.heads = heads
        check_dropout(dropout)
        self.relative = RelativeTerms(rotary) if isinstance(rotary, Relative) else None
        if isinstance(rotary, Relative):
            rotary = False
        self.rotary = Rotary(self.dim_head) if rotary is True else rotary or None
        self.dropout = dropout
        self.stride = 1
        self.to_q = nn.Linear(dim, heads * self.dim_head, bias=False)
        self.to_kv = nn.Linear(dim, 2 * heads * self.dim_head, bias=False)
        self.to_out = nn.Linear(heads * self.dim_head, dim)

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        pattern: Pattern | None = None,
        key_mask: Tensor | Context | None = None,
        x_stride: int = 1,
        context_stride: int = 1,
        group: int = 1,
        place: Context | None = None,
    ) -> Tensor:
        """Attention of x (batch, queries, dim) over context (batch, keys, dim) -> as x.

        Args:
            pattern: which queries read which keys; all by default.
            key_mask: (batch, keys) bool, True = real; queries that read nothing get zeros.
            x_stride, context_stride: step from one token to the next, in common positions.
            group: so many neighbouring queries read the same keys; the pattern is then between
                groups and keys, and there is a key for each group.
            place: where the queries are, of a part of a sequence; key_mask says then where the
                keys are.
        """
        if isinstance(key_mask, Context):
            place = key_mask if place is None else place
            strides = (x_stride, context_stride)
            return self._within(x, context, pattern, place, key_mask, strides, group)
        q = self.queries(x, 0, x_stride)
        k, v = self.keys(context, 0, context_stride)
        if self.relative is not None:
            q_places = torch.arange(q.shape[2], device=q.device) * (x_stride * self.stride)
            k_places = torch.arange(k.shape[2], device=k.device) * (context_stride * self.stride)
            q, k = self.relative.extended(q, k, q_places, k_places)
        out = attend(
            _grouped(q, group, k.shape[2]),
            k,
            v,
            Full() if pattern is None else pattern,
            key_mask=key_mask,
            scale=self.dim_head**-0.5,
            dropout_p=self.dropout if self.training else 0.0,
        )
        out = _ungrouped(out, group, self.heads)
        exporting = torch.compiler.is_exporting()
        out = take_first(out, 2, x.shape[1]) if exporting else out[:, :, : x.shape[1]]
        return project(self.to_out, join_heads(out))

    def _within(
        self,
        x: Tensor,
        context: Tensor,
        pattern: Pattern | None,
        place: Context,
        keys: Context,
        strides: tuple[int, int],
        group: int,
    ) -> Tensor:
        """`forward` of some of the queries over some of the keys; others have the rest."""
        q = self.queries(x, place.first * strides[0], strides[0])
        k, v = self.keys(context, keys.first * strides[1], strides[1])
        if self.relative is not None:
            steps = place.places(q.shape[2], q.device) * strides[0]
            relate = self.relative.between(self.stride, strides[1])
            q, k = relate(q, k, steps, keys.places(k.shape[2], k.device))
        before = place.first % group  # queries of its group that are not here
        num_groups = -(-(before + x.shape[1]) // group)
        q = _grouped(F.pad(q, (0, 0, before, 0)) if before else q, group, num_groups)
        out = keys.attend(
            q,
            k,
            v,
            Full() if pattern is None else pattern,
            key_mask=keys.mask,
            scale=self.dim_head**-0.5,
            dropout_p=self.dropout if self.training else 0.0,
            queries=[(a // group, -(-b // group)) for a, b in place.spans],
        )
        out = _ungrouped(out, group, self.heads)[:, :, before : before + x.shape[1]]
        return project(self.to_out, join_heads(out))

    def queries(self, x: Tensor, offset: int = 0, stride: int = 1) -> Tensor:
        """(batch, tokens, dim) -> (batch, heads, tokens, dim_head)."""
        check_dense("x", x)
        return self._turn(project(self.to_q, x), offset, stride)

    def keys(self, context: Tensor, offset: int = 0, stride: int = 1) -> tuple[Tensor, Tensor]:
        """(batch, tokens, dim) -> keys and values (batch, heads, tokens, dim_head)."""
        check_dense("context", context)
        k, v = project(self.to_kv, context).chunk(2, dim=-1)
        return self._turn(k, offset, stride), split_heads(v, self.dim_head)

    def make_cache(
        self, batch: int, max_length: int | None = None, device: Device = None
    ) -> AttentionCache:
        """An empty state for the context's keys; it forgets nothing."""
        dtype, device = state_dtype(self.to_kv), device or device_of(self.to_kv)
        return AttentionCache(
            Full(causal=True),
            batch,
            self.heads,
            self.dim_head,
            max_length,
            dtype=dtype,
            device=device,
        )

    def step(
        self, x: Tensor, cache: AttentionCache, offset: int, context_stride: int = 1
    ) -> Tensor:
        """Attention of one token x (batch, 1, dim) at position `offset` over all cached keys."""
        q, bias = self.queries(x, offset), None
        if self.relative is not None:
            q, bias = self.relative.newest(q, offset, self.stride, context_stride)
        return project(self.to_out, join_heads(cache.attend(q, bias=bias)))

    def extend(
        self,
        x: Tensor,
        cache: AttentionCache,
        pattern: Pattern,
        offset: int,
        x_stride: int = 1,
        context_stride: int = 1,
        group: int = 1,
    ) -> Tensor:
        """Attention of x (batch, tokens, dim), the latest queries, over all cached keys -> as x.

        Args:
            offset: position of the first of them.
            Others as in `forward`.
        """
        k, v = cache.kept()[1]
        q = self.queries(x, offset, x_stride)
        if self.relative is not None:
            steps = torch.arange(x.shape[1], device=x.device) * x_stride + offset
            relate = self.relative.between(self.stride, context_stride)
            q, k = relate(q, k, steps, torch.arange(k.shape[2], device=x.device))
        before = offset % group  # queries of its group that came earlier
        num_groups = -(-(before + x.shape[1]) // group)
        q = _grouped(F.pad(q, (0, 0, before, 0)) if before else q, group, num_groups)
        scale = self.dim_head**-0.5
        out = attend(q.to(k.dtype), k, v, pattern, scale=scale, q_offset=-1).to(x.dtype)
        out = _ungrouped(out, group, self.heads)[:, :, before : before + x.shape[1]]
        return project(self.to_out, join_heads(out))

    def _turn(self, x: Tensor, offset: int, stride: int) -> Tensor:
        x = x.unflatten(-1, (self.heads, self.dim_head))
        if self.rotary is not None:
            x = self.rotary(x, offset, stride)
        return x.transpose(1, 2)


def _grouped(q: Tensor, group: int, num_groups: int) -> Tensor:
    """(B, H, queries, D) -> (B, H group, groups, D): the queries of a group as heads over one key.

    Heads that share keys are what grouped-query attention is made for.
    """
    if group == 1:
        return q
    q = F.pad(q, (0, 0, 0, group * num_groups - q.shape[2]))
    return q.unflatten(2, (num_groups, group)).transpose(2, 3).flatten(1, 2)


def _ungrouped(out: Tensor, group: int, heads: int) -> Tensor:
    """(B, H group, groups, D) -> (B, H, groups group, D)."""
    if group == 1:
        return out
    return out.unflatten(1, (heads, group)).transpose(2, 3).flatten(2, 3)
