"""Hourglass as hourglass-transformer-pytorch 0.0.6 computes it, for its checkpoints.

What differs from the corrected mathematics of the same weights (`compat=None`):

| here | corrected |
|---|---|
| the mean of a group counts the shift's zeros, and padding as real tokens | counts real tokens |
| resampling attention sees its own group; expanding, one coarse token | the whole past |
| the shift's zeros are keys of that attention | are not there |
| where the mask hides all keys, every key is read, later ones too | nothing is read |
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.caches import DecodingState
from foveal.layers import Block, SelfAttention, Stack
from foveal.layers.checks import join_heads, split_heads
from foveal.models.hourglass.attention import ResamplingAttention
from foveal.models.hourglass.resampling import Groups, LinearShorten
from foveal.models.hourglass.stage import HourglassTransformer
from foveal.ops import attend
from foveal.ops.fused import fused_attention


class FilledAttention(SelfAttention):
    """A query without any key reads the mean of all values."""

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        out = attend(q, k, v, self.pattern, key_mask=mask)
        if mask is not None:
            out = fill_empty(
                out, v, self.pattern.mask(q.shape[2], device=q.device) & mask[:, None]
            )
        return self.to_out(join_heads(out))


def fill_empty(out: Tensor, v: Tensor, some: Tensor) -> Tensor:
    """out (batch, heads, queries, dim) with the mean of all values where nothing can be read.

    some: (batch, queries or 1, keys) bool, who may read what.
    """
    empty = ~some.any(-1)[:, None, :, None]
    return torch.where(empty, v.mean(2, keepdim=True), out)


class FilledBlock(Block):
    """A block with such attention."""

    attention_class = FilledAttention


class FilledStack(Stack):
    """A stack of such blocks."""

    block_class = FilledBlock


class GroupAttention(ResamplingAttention):
    """Resampling attention inside each group of k tokens."""

    def within(self, x: Tensor, groups: Tensor, mask: Tensor | None) -> Tensor:
        """x (B, M, queries, D) over groups (B, M, keys, D), mask (B, M, keys) True = real."""
        batch, num_groups = x.shape[:2]
        x = x.flatten(0, 1)
        q = self.attn.queries(self.attn_norm(x))
        k, v = self.attn.keys(groups.flatten(0, 1))
        allowed = None
        if mask is not None:
            allowed = mask.flatten(0, 1)[:, None, None]
            allowed = allowed | ~allowed.any(-1, keepdim=True)
        out = fused_attention(q, k, v, attn_mask=allowed)
        if mask is not None:
            out = fill_empty(out, v, mask.flatten(0, 1)[:, None])
        return self._add(x, self.attn.to_out(join_heads(out))).unflatten(0, (batch, num_groups))

    def from_one(self, x: Tensor, coarse: Tensor) -> Tensor:
        """x (B, queries, D) over a single coarse token (B, 1, D): its value, whatever is asked."""
        v = split_heads(self.attn.to_kv(coarse).chunk(2, -1)[1], self.attn.dim_head)
        return self._add(x, self.attn.to_out(join_heads(v)).expand_as(x))


class PackageHourglass(HourglassTransformer):
    """HourglassTransformer of the package; see the table above.

    Args: as in HourglassTransformer; the configuration has norms="single".
    """

    stack_class = FilledStack
    attention_class = GroupAttention
    attn_shorten: GroupAttention | None
    attn_upsample: GroupAttention | None

    def _shortened(self, x: Tensor, mask: Any) -> tuple[Tensor, Tensor | None]:
        k, length = self.factor, x.shape[1]
        before = k - 1 if self.causal else 0
        after = -length % k - before
        groups = F.pad(x, (0, 0, before, after)).unflatten(1, (-1, k))
        real = None if mask is None else F.pad(mask, (before, after)).unflatten(1, (-1, k))
        coarse = self._pool(groups)
        if self.attn_shorten is not None:
            coarse = self.attn_shorten.within(coarse[:, :, None], groups, real)[:, :, 0]
        return coarse, None if real is None else real.any(2)

    def _pool(self, groups: Tensor) -> Tensor:
        """(B, M, K, D) -> (B, M, D), zeros counted."""
        if isinstance(self.shorten, LinearShorten):
            return self.shorten(Groups(groups, groups.new_ones(()).bool()))
        return groups.mean(2)

    def _expanded(self, x: Tensor, coarse: Tensor, above: Any, mask: Any = None) -> Tensor:
        wide = self._wide(coarse, x.shape[1])
        assert wide is not None
        x = x + wide
        if self.attn_upsample is None:
            return x
        length = x.shape[1]
        x = F.pad(x, (0, 0, 0, -length % self.factor)).unflatten(1, (-1, self.factor))
        return self.attn_upsample.within(x, coarse[:, :, None], None).flatten(1, 2)[:, :length]

    # -- decoding ---------------------------------------------------------------------------

    def prefill(self, x: Tensor, cache: DecodingState) -> tuple[Tensor, DecodingState]:
        """First tokens: x (batch, tokens, dim) -> same, remembered in an empty cache."""
        before, inner, after, *rest = cache.parts
        x, before = self.pre_transformer.prefill(x, before)
        recent = torch.cat((cache.tensors["recent"].to(x.dtype), x), 1)
        cache.tensors["recent"] = recent[:, -self.factor :].clone()
        coarse, _ = self._shortened(x, None)
        coarse, inner = self.valley_transformer.prefill(coarse, inner)
        self._tell(coarse[:, -1:], cache)
        cache.position += x.shape[1]
        x, after = self.post_transformer.prefill(self._expanded(x, coarse, None), after)
        cache.parts = [before, inner, after, *rest]
        return self.norm_out(x), cache

    def step(self, x: Tensor, cache: DecodingState) -> tuple[Tensor, DecodingState]:
        """One more token x (batch, 1, dim) -> same; the inner level steps every k-th time."""
        place = cache.position % self.factor
        x, cache.parts[0] = self.pre_transformer.step(x, cache.parts[0])
        recent = torch.cat((cache.tensors["recent"][:, 1:].to(x.dtype), x), 1)
        cache.tensors["recent"] = recent
        if place == 0:
            coarse = self._pool(recent[:, None])
            if self.attn_shorten is not None:
                coarse = self.attn_shorten.within(coarse[:, :, None], recent[:, None], None)[:, 0]
            coarse, cache.parts[1] = self.valley_transformer.step(coarse, cache.parts[1])
            self._tell(coarse, cache)
        x = x + cache.tensors["wide"][:, place : place + 1]
        if self.attn_upsample is not None:
            x = self.attn_upsample.from_one(x, cache.tensors["coarse"])
        x, cache.parts[2] = self.post_transformer.step(x, cache.parts[2])
        cache.position += 1
        return self.norm_out(x), cache

    def extend(self, x: Tensor, cache: DecodingState) -> tuple[Tensor, DecodingState]:
        """Many more tokens: x (batch, tokens, dim) -> same, one after the other."""
        if not cache.position:
            return self.prefill(x, cache)
        outs = []
        for token in x.split(1, 1):
            y, cache = self.step(token, cache)
            outs.append(y)
        return torch.cat(outs, 1), cache

    def make_cache(self, *args: object, **options: object) -> DecodingState:
        """An empty decoding state; nothing is kept for attention beyond a group."""
        cache = super().make_cache(*args, **options)  # type: ignore[arg-type]
        cache.parts[3:] = [None, None]
        return cache

    def _tell(self, coarse: Tensor, cache: DecodingState) -> None:
        super()._tell(coarse, cache)
        cache.tensors["coarse"] = coarse.clone()
