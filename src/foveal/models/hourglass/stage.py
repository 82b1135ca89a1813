"""One level of the hierarchy: blocks, a shortened inner level, blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from foveal.caches import DecodingState
from foveal.common.by_example import shared_below
from foveal.common.symbols import take_first
from foveal.layers import CrossAttention, Relative, Rotary, SelfAttention, Stack
from foveal.layers.checks import Device, head_size
from foveal.layers.linear import is_plain
from foveal.layers.packing import Context, real
from foveal.layers.prepared import Step, Turns
from foveal.models.hourglass.attention import ResamplingAttention
from foveal.models.hourglass.config import HourglassConfig
from foveal.models.hourglass.resampling import (
    Groups,
    LinearShorten,
    LinearUpsample,
    NaiveShorten,
    NaiveUpsample,
    gather_groups,
    speaking,
)

Position = Rotary | Relative | bool


def make_positions(config: HourglassConfig) -> Position:
    """What all layers of a model share about positions."""
    dim_head = head_size(config.dim, config.heads, config.dim_head)
    if config.position_kind == "relative":
        return Relative(config.dim, config.heads, dim_head)
    return Rotary(dim_head) if config.position_kind == "rotary" else False


class HourglassTransformer(nn.Module):
    """Blocks at full length around an inner hierarchy at a k-th of it, added back.

    x = before(x); x = x + norm(upsample(inner(shorten(shift(x))))); x = after(x).
    Every stack of blocks ends in a LayerNorm, as in the authors' code; see `norms`.

    Args:
        config: a HourglassConfig; or give its keywords (those of tokens and embeddings are not
            used); or an int, the keyword dim.
        stage: the level to build with all that is inside it; 0 is the outermost.
        shared: positions that the levels around it use too; None makes its own.
        norm_out: with norms="single", end in a LayerNorm.

    Attributes:
        factor: tokens that become one.

    Raises:
        ValueError: an unknown keyword, sizes that do not fit, or a depth without nesting.
    """

    stack_class: ClassVar[type[Stack]] = Stack
    attention_class: ClassVar[type[ResamplingAttention]] = ResamplingAttention

    def __init__(
        self,
        config: HourglassConfig | int | None = None,
        /,
        stage: int = 0,
        shared: Position | None = None,
        norm_out: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        if isinstance(config, int):
            config, options = None, {"dim": config, **options}
        config = HourglassConfig.resolve(config, options)
        if stage >= config.num_stages:
            raise ValueError(
                f"depth must be (before, inner, after) for an hourglass, got depth={config.depth}."
            )
        before, _, after = config.depth_of(stage)
        self.factor, self.causal, self.config = config.factors[stage], config.causal, config
        self.is_outermost = stage == 0
        if shared is None:
            shared = make_positions(config)
            if isinstance(shared, Relative):
                self.positions = shared
        self.pre_transformer = self.build_stack(config, stage, before, shared)
        self.shorten = self._shorten(config)
        self.valley_transformer = self.build(config, stage + 1, shared)
        self.upsample = self._upsample(config)
        single = config.norms == "single"
        self.upsample_norm = nn.Identity() if single else nn.LayerNorm(config.dim)
        self.post_transformer = self.build_stack(config, stage, after, shared)
        shorten, upsample = config.shorten_kind[1], config.upsample_kind[1]
        self.attn_shorten = self._attention(config, shared, True) if shorten else None
        self.attn_upsample = self._attention(config, shared, False) if upsample else None
        self.norm_out = nn.LayerNorm(config.dim) if single and norm_out else nn.Identity()
        if self.is_outermost:
            self.use_shorten_factor(config.factors)

    @classmethod
    def build(
        cls,
        config: HourglassConfig,
        stage: int = 0,
        shared: Position | None = None,
        norm_out: bool = False,
    ) -> Stack | HourglassTransformer:
        """The part of the hierarchy from a stage inwards; 0 is the outermost."""
        if stage < config.num_stages:
            return cls(config, stage=stage, shared=shared, norm_out=norm_out)
        shared = make_positions(config) if shared is None else shared
        return cls.build_stack(config, stage, config.depth_of(stage), shared, norm_out)

    @classmethod
    def build_stack(
        cls,
        config: HourglassConfig,
        stage: int,
        depth: int,
        shared: Position,
        norm_out: bool = False,
    ) -> Stack:
        """Blocks of one stage."""
        return cls.stack_class(
            config.dim,
            depth,
            config.stage_patterns(stage),
            heads=config.heads,
            dim_head=config.dim_head,
            kv_heads=config.kv_heads,
            rotary=shared,
            ff_mult=config.ff_mult,
            activation=config.activation,
            dropout=config.dropout,
            norm_out=norm_out or config.norms != "single",
        )

    def _shorten(self, config: HourglassConfig) -> NaiveShorten | LinearShorten:
        linear = config.shorten_kind[0] == "linear"
        return LinearShorten(config.dim, self.factor) if linear else NaiveShorten()

    def _upsample(self, config: HourglassConfig) -> NaiveUpsample | LinearUpsample | None:
        kind = config.upsample_kind[0]
        if kind == "identity":
            return None
        linear = kind == "linear"
        return LinearUpsample(config.dim, self.factor) if linear else NaiveUpsample(self.factor)

    def _attention(
        self, config: HourglassConfig, shared: Position, shortening: bool
    ) -> ResamplingAttention:
        return self.attention_class(
            config.dim,
            self.factor,
            self.causal,
            shortening,
            heads=config.heads,
            dim_head=head_size(config.dim, config.heads, config.dim_head),
            rotary=shared,
            ff_mult=config.ff_mult,
            dropout=config.dropout,
            pre_norm=config.norms != "authors",
            norm_context=config.norms != "single",
        )

    def extra_repr(self) -> str:
        return f"factor={self.factor}, causal={self.causal}"

    # -- shorten factors --------------------------------------------------------------------

    def use_shorten_factor(self, factor: int | Sequence[int]) -> Self:
        """Shorten by another factor from now on: an int for every stage, or one for each.

        With `factor_choices`, training draws its own factors whatever is set here.

        Raises:
            ValueError: the number of stages differs, or projections fix the factor.
        """
        factors = self.config.factors_from(factor)
        if factors != self.config.factors:
            self.config.check_flexible("another shorten_factor")
        self._evaluated = factors
        self._set_factors(factors, 1)
        return self

    def _set_factors(self, factors: Sequence[int], stride: int) -> None:
        """Factors from this stage inwards; stride: total shortening of this stage."""
        self.factor = factors[0]
        for part in (self.upsample, self.attn_shorten, self.attn_upsample):
            if part is not None:
                part.factor = self.factor
        for own in (self.pre_transformer, self.post_transformer, self.attn_shorten):
            _set_stride(own, stride)
        _set_stride(self.attn_upsample, stride)
        if isinstance(self.valley_transformer, HourglassTransformer):
            self.valley_transformer._set_factors(factors[1:], stride * self.factor)
        else:
            _set_stride(self.valley_transformer, stride * self.factor)

    def _choose_factors(self, training: bool, mask: Tensor | Context | None = None) -> None:
        """Before a forward pass of the outermost stage: the factors to run with."""
        if not self.config.choices or not self.is_outermost:
            return
        factors = self._evaluated
        if training:
            drawn = torch.tensor([shared_below(len(one)) for one in self.config.choices])
            drawn = mask.agreed(drawn) if isinstance(mask, Context) else drawn
            several = zip(self.config.choices, drawn.tolist(), strict=True)
            factors = tuple(one[number] for one, number in several)
        self._set_factors(factors, 1)

    # -- forward ----------------------------------------------------------------------------

    def forward(self, x: Tensor, mask: Tensor | Context | None = None) -> Tensor:
        """(batch, tokens, dim) -> same, for any number of tokens.

        Args:
            mask: (batch, tokens) bool, True = real; on either side.
        """
        self._choose_factors(self.training, mask)
        x = self.pre_transformer(x, mask)
        coarse, above = self._shortened(x, mask)
        coarse = self.valley_transformer(coarse, above)
        x = self._expanded(x, coarse, above, mask)
        return self.norm_out(self.post_transformer(x, mask))

    def _shortened(
        self, x: Tensor, mask: Tensor | Context | None
    ) -> tuple[Tensor, Tensor | Context | None]:
        """Coarse tokens (batch, groups, dim), and which of them hold anything real."""
        if self.attn_shorten is None:
            groups = gather_groups(x, mask, self.factor, self.causal)
            return self.shorten(groups), self._above(groups, mask)
        if (known := real(mask)) is not None:
            x = x.masked_fill(~known[..., None], 0.0)
        source, context = self.attn_shorten.source(x)
        groups = gather_groups(source, mask, self.factor, self.causal)
        above = self._above(groups, mask)
        place = above if isinstance(above, Context) else None
        return self.attn_shorten(self.shorten(groups), None, context, mask, place), above

    def _above(self, groups: Groups, mask: Tensor | Context | None) -> Tensor | Context | None:
        """What stands in the place of the mask for coarse tokens."""
        some = None if real(mask) is None else groups.real.any(2)
        return mask.coarser(self.factor, some) if isinstance(mask, Context) else some

    def _expanded(
        self,
        x: Tensor,
        coarse: Tensor,
        above: Tensor | Context | None,
        mask: Tensor | Context | None = None,
    ) -> Tensor:
        """x plus what the coarse tokens say to each fine one."""
        if (known := real(above)) is not None:
            coarse = coarse.masked_fill(~known[..., None], 0.0)
        if self.attn_upsample is None:
            return self._join(x, self._wide(coarse, x.shape[1], above, mask))
        source, context = self.attn_upsample.source(coarse)
        wide = self._wide(source, x.shape[1], above, mask)
        place = mask if isinstance(mask, Context) else None
        return self._join(x, self.attn_upsample(wide, x, context, above, place))

    def _wide(
        self, coarse: Tensor, length: int, above: Any = None, mask: Any = None
    ) -> Tensor | None:
        if self.upsample is None:
            return None
        skip = 0
        if isinstance(mask, Context):
            coarse, skip = speaking(coarse, above, mask, self.factor)
        wide = self.upsample(coarse)
        if torch.compiler.is_exporting() and not skip:
            return take_first(wide, 1, length)  # a slice would ask whether there are so many
        return wide[:, skip : skip + length]

    def _join(self, x: Tensor, y: Tensor | None) -> Tensor:
        """The residual connection around a stage."""
        assert y is not None
        if self.config.norms == "single" and self.attn_upsample is not None:
            return y  # x is part of it already
        return x + self.upsample_norm(y)

    # -- decoding ---------------------------------------------------------------------------

    def make_cache(
        self, batch: int, max_length: int | None = None, device: Device = None
    ) -> DecodingState:
        """An empty decoding state for `batch` rows.

        Parts: before, inner, after, fine keys for shortening, coarse keys for upsampling.
        Tensors: `recent`, the last k fine tokens; `wide`, what the current coarse token says to
        each token of its group.
        """
        self._choose_factors(False)
        inner = None if max_length is None else -(-max_length // self.factor)
        down, up = self.attn_shorten, self.attn_upsample
        parts: list[Any] = [
            self.pre_transformer.make_cache(batch, max_length, device),
            self.valley_transformer.make_cache(batch, inner, device),
            self.post_transformer.make_cache(batch, max_length, device),
            None if down is None else down.attn.make_cache(batch, max_length, device),
            None if up is None else up.attn.make_cache(batch, inner, device),
        ]
        weight = next(self.parameters())
        room = weight.new_zeros((batch, self.factor, self.config.dim), device=device)
        return DecodingState(parts, tensors={"recent": room, "wide": torch.zeros_like(room)})

    def prefill(self, x: Tensor, cache: DecodingState) -> tuple[Tensor, DecodingState]:
        """First tokens: x (batch, tokens, dim) -> same, remembered in an empty cache."""
        before, inner, after, fine_keys, coarse_keys = cache.parts
        x, before = self.pre_transformer.prefill(x, before)
        coarse, _ = self._shortened(x, None)
        coarse, inner = self.valley_transformer.prefill(coarse, inner)
        recent, told = x[:, -self.factor :], coarse[:, -1:]
        if self.attn_shorten is not None:
            source, context = self.attn_shorten.source(x)
            recent = source[:, -self.factor :]
            fine_keys = self.attn_shorten.remember(context, fine_keys)
        if self.attn_upsample is not None:
            source, context = self.attn_upsample.source(coarse)
            told = source[:, -1:]
            coarse_keys = self.attn_upsample.remember(context, coarse_keys)
        recent = torch.cat((cache.tensors["recent"].to(x.dtype), recent), 1)
        cache.tensors["recent"] = recent[:, -self.factor :].clone()
        self._tell(told, cache)
        cache.position += x.shape[1]
        x = self._expanded(x, coarse, None)
        x, after = self.post_transformer.prefill(x, after)
        cache.parts = [before, inner, after, fine_keys, coarse_keys]
        return self.norm_out(x), cache

    def extend(self, x: Tensor, cache: DecodingState) -> tuple[Tensor, DecodingState]:
        """Many more tokens: x (batch, tokens, dim) -> same, and the cache."""
        if not cache.position:
            return self.prefill(x, cache)
        first, stop = cache.position, cache.position + x.shape[1]
        x, cache.parts[0] = self.pre_transformer.extend(x, cache.parts[0])
        source = x
        if self.attn_shorten is not None:
            source, context = self.attn_shorten.source(x)
            cache.parts[3] = self.attn_shorten.remember(context, cache.parts[3])
        recent = torch.cat((cache.tensors["recent"].to(x.dtype), source), 1)
        cache.tensors["recent"] = recent[:, -self.factor :].clone()
        wide = cache.tensors["wide"].to(x.dtype)
        if (stop - 1) // self.factor > (first - 1) // self.factor:
            told = self._extend_inner(recent, cache)
            if self.upsample is not None:
                wide = torch.cat((wide, self.upsample(told)), 1)
        place = (first - 1) % self.factor + 1  # in the group of the token before, or behind it
        y = None if self.upsample is None else wide[:, place : place + x.shape[1]]
        if self.attn_upsample is not None:
            y = self.attn_upsample.extend(y, x, cache.parts[4], first)
        x, cache.parts[2] = self.post_transformer.extend(self._join(x, y), cache.parts[2])
        cache.position = stop
        return self.norm_out(x), cache

    def _extend_inner(self, recent: Tensor, cache: DecodingState) -> Tensor:
        """What new coarse tokens say (batch, groups, dim), from the k latest fine ones and the
        new ones (batch, k + tokens, dim)."""
        k, first = self.factor, cache.position
        start, stop = -(-first // k), -(-(first + recent.shape[1] - k) // k)
        begin = start * k + 1 - first
        groups = recent[:, begin : begin + (stop - start) * k].unflatten(1, (stop - start, k))
        real = torch.ones(1, 1, k, dtype=torch.bool, device=recent.device)
        coarse = self.shorten(Groups(groups, real))
        if self.attn_shorten is not None:
            coarse = self.attn_shorten.extend(coarse, None, cache.parts[3], start * k)
        coarse, cache.parts[1] = self.valley_transformer.extend(coarse, cache.parts[1])
        if self.attn_upsample is not None:
            coarse, context = self.attn_upsample.source(coarse)
            cache.parts[4] = self.attn_upsample.remember(context, cache.parts[4])
        self._tell(coarse[:, -1:], cache)
        return coarse

    def step(self, x: Tensor, cache: DecodingState) -> tuple[Tensor, DecodingState]:
        """One more token x (batch, 1, dim) -> same; the inner level steps every k-th time."""
        parts = (self.pre_transformer, self.valley_transformer, self.post_transformer)
        return self._step(x, cache, *(part.step for part in parts))

    def stepper(self, rows: int) -> Step:
        """`step` for many tokens of `rows` rows, prepared: see foveal.layers.prepared."""
        if type(self).step is not HourglassTransformer.step:
            return self.step
        turns = Turns()
        before, after = self.pre_transformer, self.post_transformer
        inner = self.valley_transformer.stepper(rows)  # stands at other positions
        steps = (before.stepper(rows, turns), inner, after.stepper(rows, turns))
        return lambda x, cache: self._step(x, cache, *steps)

    def _step(
        self, x: Tensor, cache: DecodingState, before: Step, inner: Step, after: Step
    ) -> tuple[Tensor, DecodingState]:
        x, cache.parts[0] = before(x, cache.parts[0])
        newest = x
        if self.attn_shorten is not None:
            newest, context = self.attn_shorten.source(x)
            cache.parts[3] = self.attn_shorten.remember(context, cache.parts[3])
        recent = torch.cat((cache.tensors["recent"][:, 1:].to(x.dtype), newest), 1)
        cache.tensors["recent"] = recent
        place = cache.position % self.factor
        if place == 0:
            cache = self._step_inner(recent, cache, inner)
        x = self._join(x, self._told(x, cache, place))
        x, cache.parts[2] = after(x, cache.parts[2])
        cache.position += 1
        return self.norm_out(x), cache

    def _told(self, x: Tensor, cache: DecodingState, place: int) -> Tensor:
        """What the coarse tokens say to the token x at a place of its group."""
        wide = None if self.upsample is None else cache.tensors["wide"][:, place : place + 1]
        if self.attn_upsample is not None:
            return self.attn_upsample.step(wide, x, cache.parts[4], cache.position)
        assert wide is not None
        return wide

    def _step_inner(self, recent: Tensor, cache: DecodingState, inner: Step) -> DecodingState:
        """A new coarse token from the last k fine ones (batch, k, dim)."""
        position = cache.position
        coarse = self._pooled(recent, position)
        if self.attn_shorten is not None:
            coarse = self.attn_shorten.step(coarse, None, cache.parts[3], position)
        coarse, cache.parts[1] = inner(coarse, cache.parts[1])
        if self.attn_upsample is not None:
            coarse, context = self.attn_upsample.source(coarse)
            cache.parts[4] = self.attn_upsample.remember(context, cache.parts[4])
        self._tell(coarse, cache)
        return cache

    def _pooled(self, recent: Tensor, position: int) -> Tensor:
        """The coarse token of a group (batch, k, dim) whose last token stands at a position."""
        if position >= self.factor - 1 and is_plain(self.shorten, NaiveShorten):
            return recent.mean(1, keepdim=True)
        place = torch.arange(position - self.factor + 1, position + 1, device=recent.device)
        return self.shorten(Groups(recent[:, None], (place >= 0)[None, None]))

    def _tell(self, coarse: Tensor, cache: DecodingState) -> None:
        """Keep what a coarse token (batch, 1, dim) says to the tokens of its group."""
        if self.upsample is not None:
            cache.tensors["wide"] = self.upsample(coarse)


def _set_stride(part: nn.Module | None, stride: int) -> None:
    """Tell relative attention how far apart its tokens stand."""
    for module in () if part is None else part.modules():
        if isinstance(module, SelfAttention | CrossAttention):
            module.stride = stride
