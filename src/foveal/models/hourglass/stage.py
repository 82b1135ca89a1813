"""One level of the hierarchy: blocks, a shortened inner level, blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from foveal.caches import DecodingState
from foveal.layers import Rotary, Stack
from foveal.layers.checks import Device, head_size
from foveal.models.hourglass.config import HourglassConfig
from foveal.models.hourglass.resampling import (
    Groups,
    LinearShorten,
    LinearUpsample,
    NaiveShorten,
    NaiveUpsample,
    ResamplingAttention,
    gather_groups,
)


def build_stage(config: HourglassConfig, stage: int = 0) -> Stack | HourglassTransformer:
    """The part of the hierarchy from a stage inwards; 0 is the outermost."""
    if stage < config.num_stages:
        return HourglassTransformer(config, stage)
    return _stack(config, stage, config.depth_of(stage))


def _rotary(config: HourglassConfig) -> Rotary | bool:
    return Rotary(head_size(config.dim, config.heads, config.dim_head)) if config.rotary else False


def _stack(config: HourglassConfig, stage: int, depth: int) -> Stack:
    return Stack(
        config.dim,
        depth,
        config.stage_patterns(stage),
        heads=config.heads,
        dim_head=config.dim_head,
        kv_heads=config.kv_heads,
        rotary=_rotary(config),
        ff_mult=config.ff_mult,
        activation=config.activation,
        dropout=config.dropout,
    )


class HourglassTransformer(nn.Module):
    """Blocks at full length around an inner hierarchy at a k-th of it, added back.

    x = before(x); x = x + norm(upsample(inner(shorten(shift(x))))); x = after(x).
    Every stack of blocks ends in a LayerNorm, as in the authors' code.

    Args:
        config: a HourglassConfig; or give its keywords (those of tokens and embeddings are not
            used).
        stage: the level to build with all that is inside it; 0 is the outermost.

    Raises:
        ValueError: an unknown keyword, sizes that do not fit, or a depth without nesting.
    """

    def __init__(
        self, config: HourglassConfig | None = None, /, stage: int = 0, **options: Any
    ) -> None:
        super().__init__()
        config = HourglassConfig.resolve(config, options)
        if stage >= config.num_stages:
            raise ValueError(
                f"depth must be (before, inner, after) for an hourglass, got depth={config.depth}."
            )
        before, _, after = config.depth_of(stage)
        self.factor, self.causal = config.factors[stage], config.causal
        self.pre_transformer = _stack(config, stage, before)
        self.shorten = self._shorten(config)
        self.valley_transformer = build_stage(config, stage + 1)
        self.upsample = self._upsample(config)
        self.upsample_norm = nn.LayerNorm(config.dim)
        self.post_transformer = _stack(config, stage, after)
        self.attn_shorten = self._attention(config, shortening=True)
        self.attn_upsample = self._attention(config, shortening=False)

    def _shorten(self, config: HourglassConfig) -> NaiveShorten | LinearShorten:
        linear = config.updown_sample_type == "linear"
        return LinearShorten(config.dim, self.factor) if linear else NaiveShorten()

    def _upsample(self, config: HourglassConfig) -> NaiveUpsample | LinearUpsample:
        linear = config.updown_sample_type == "linear"
        return LinearUpsample(config.dim, self.factor) if linear else NaiveUpsample(self.factor)

    def _attention(self, config: HourglassConfig, shortening: bool) -> ResamplingAttention | None:
        if not config.attn_resampling:
            return None
        return ResamplingAttention(
            config.dim,
            self.factor,
            self.causal,
            shortening,
            heads=config.heads,
            dim_head=head_size(config.dim, config.heads, config.dim_head),
            rotary=_rotary(config),
            ff_mult=config.ff_mult,
            dropout=config.dropout,
        )

    def extra_repr(self) -> str:
        return f"factor={self.factor}, causal={self.causal}"

    # -- forward ----------------------------------------------------------------------------

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(batch, tokens, dim) -> same, for any number of tokens.

        Args:
            mask: (batch, tokens) bool, True = real; on either side.
        """
        x = self.pre_transformer(x, mask)
        coarse, real = self._shortened(x, mask)
        coarse = self.valley_transformer(coarse, real)
        x = self._expanded(x, coarse, real)
        return self.post_transformer(x, mask)

    def _shortened(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Coarse tokens (batch, groups, dim), and which of them hold anything real."""
        groups = gather_groups(x, mask, self.factor, self.causal)
        coarse = self.shorten(groups)
        if self.attn_shorten is not None:
            if mask is not None:
                x = x.masked_fill(~mask[..., None], 0.0)
            coarse = self.attn_shorten(coarse, x, mask)
        return coarse, None if mask is None else groups.real.any(2)

    def _expanded(self, x: Tensor, coarse: Tensor, real: Tensor | None) -> Tensor:
        """x plus what the coarse tokens say to each fine one."""
        if real is not None:
            coarse = coarse.masked_fill(~real[..., None], 0.0)
        wide = self.upsample(coarse)[:, : x.shape[1]]
        if self.attn_upsample is not None:
            wide = self.attn_upsample(x + wide, coarse, real)
        return x + self.upsample_norm(wide)

    # -- decoding ---------------------------------------------------------------------------

    def make_cache(
        self, batch: int, max_length: int | None = None, device: Device = None
    ) -> DecodingState:
        """An empty decoding state for `batch` rows.

        Parts: before, inner, after, fine keys for shortening, coarse keys for upsampling.
        Tensors: `recent`, the last k fine tokens; `wide`, what the current coarse token says to
        each token of its group.
        """
        inner = None if max_length is None else -(-max_length // self.factor)
        down, up = self.attn_shorten, self.attn_upsample
        parts: list[Any] = [
            self.pre_transformer.make_cache(batch, max_length, device),
            self.valley_transformer.make_cache(batch, inner, device),
            self.post_transformer.make_cache(batch, max_length, device),
            None if down is None else down.attn.make_cache(batch, max_length, device),
            None if up is None else up.attn.make_cache(batch, inner, device),
        ]
        weight = self.upsample_norm.weight
        room = weight.new_zeros((batch, self.factor, weight.shape[0]), device=device)
        return DecodingState(parts, tensors={"recent": room, "wide": torch.zeros_like(room)})

    def prefill(self, x: Tensor, cache: DecodingState) -> tuple[Tensor, DecodingState]:
        """The forward pass over the first tokens, remembered in an empty cache."""
        before, inner, after, fine_keys, coarse_keys = cache.parts
        x, before = self.pre_transformer.prefill(x, before)
        coarse, _ = self._shortened(x, None)
        coarse, inner = self.valley_transformer.prefill(coarse, inner)
        if self.attn_shorten is not None:
            fine_keys = self.attn_shorten.remember(x, fine_keys)
        if self.attn_upsample is not None:
            coarse_keys = self.attn_upsample.remember(coarse, coarse_keys)
        recent = torch.cat((cache.tensors["recent"].to(x.dtype), x), 1)[:, -self.factor :]
        cache.tensors = {"recent": recent.clone(), "wide": self.upsample(coarse[:, -1:])}
        cache.position += x.shape[1]
        x = self._expanded(x, coarse, None)
        x, after = self.post_transformer.prefill(x, after)
        cache.parts = [before, inner, after, fine_keys, coarse_keys]
        return x, cache

    def step(self, x: Tensor, cache: DecodingState) -> tuple[Tensor, DecodingState]:
        """One more token x (batch, 1, dim) -> same; the inner level steps every k-th time."""
        place = cache.position % self.factor
        x, cache.parts[0] = self.pre_transformer.step(x, cache.parts[0])
        recent = torch.cat((cache.tensors["recent"][:, 1:].to(x.dtype), x), 1)
        cache.tensors["recent"] = recent
        if self.attn_shorten is not None:
            cache.parts[3] = self.attn_shorten.remember(x, cache.parts[3])
        if place == 0:
            cache = self._step_inner(recent, cache)
        wide = cache.tensors["wide"][:, place : place + 1]
        if self.attn_upsample is not None:
            wide = self.attn_upsample.step(x + wide, cache.parts[4], cache.position)
        x = x + self.upsample_norm(wide)
        x, cache.parts[2] = self.post_transformer.step(x, cache.parts[2])
        cache.position += 1
        return x, cache

    def _step_inner(self, recent: Tensor, cache: DecodingState) -> DecodingState:
        """A new coarse token from the last k fine ones (batch, k, dim)."""
        position = cache.position
        place = torch.arange(position - self.factor + 1, position + 1, device=recent.device)
        coarse = self.shorten(Groups(recent[:, None], (place >= 0)[None, None]))
        if self.attn_shorten is not None:
            coarse = self.attn_shorten.step(coarse, cache.parts[3], position)
        coarse, cache.parts[1] = self.valley_transformer.step(coarse, cache.parts[1])
        if self.attn_upsample is not None:
            cache.parts[4] = self.attn_upsample.remember(coarse, cache.parts[4])
        cache.tensors["wide"] = self.upsample(coarse)
        return cache

    # -- cost -------------------------------------------------------------------------------

    def flops(self, length: int) -> int:
        """Floating-point operations of a forward pass over `length` tokens."""
        num_groups = -(-length // self.factor)
        total = self.pre_transformer.flops(length) + self.post_transformer.flops(length)
        total += self.valley_transformer.flops(num_groups)
        for resample in (self.shorten, self.upsample):
            if isinstance(resample, LinearShorten | LinearUpsample):
                total += resample.flops(num_groups)
        for attention in (self.attn_shorten, self.attn_upsample):
            if attention is not None:
                total += attention.flops(length, num_groups)
        return total
