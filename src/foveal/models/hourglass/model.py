"""The Hourglass language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from foveal.common.lazy import provided
from foveal.layers import Relative
from foveal.models.causal import CausalLM
from foveal.models.hourglass.config import SIZES, HourglassConfig
from foveal.models.hourglass.stage import HourglassTransformer, make_positions
from foveal.models.registry import register


@register(SIZES)
class HourglassTransformerLM(CausalLM):
    """Language model whose inner layers run over a shortened sequence.

    Nawrot et al., "Hierarchical Transformers Are More Efficient Language Models" (2021), with the
    keywords of hourglass-transformer-pytorch. Differs from the paper in: the mean over a group
    counts real tokens only, so that the first group is not diluted by the shift's zeros; rotary
    positions unless positions="relative"; no biases in projections of queries, keys and values.

    Args:
        config: a HourglassConfig; or give its keywords, which win where both are given:
            num_tokens=256, dim=512, max_seq_len=1024, depth=(4, 2, 4), shorten_factor=None,
            hierarchy=None, heads=8, dim_head=64, kv_heads=None, attn_resampling=True,
            updown_sample_type="naive", shortening=None, upsampling=None, factor_choices=(),
            causal=True, pattern=None, ff_mult=4, activation="gelu", dropout=0.,
            tie_embeddings=False, rotary=True, positions=None, norms="authors", compat=None.
            See HourglassConfig for their meaning.

    Raises:
        ValueError: an unknown keyword or sizes that do not fit.

    Example:
        >>> import torch
        >>> from foveal.models import HourglassTransformerLM
        >>> model = HourglassTransformerLM(dim=32, heads=2, depth=(1, (1, 2, 1), 1))
        >>> model(torch.zeros(1, 7, dtype=torch.long)).shape
        torch.Size([1, 7, 256])
    """

    family = "hourglass"
    config_class = HourglassConfig
    settings: HourglassConfig

    def __init__(self, config: HourglassConfig | None = None, /, **options: Any) -> None:
        c = HourglassConfig.resolve(config, options)
        positions = make_positions(c)
        body_class = HourglassTransformer if c.compat is None else provided(c.compat)
        super().__init__(
            c,
            body_class.build(c, shared=positions, norm_out=True),
            num_tokens=c.num_tokens,
            dim=c.dim,
            max_seq_len=c.max_seq_len,
            dropout=c.dropout,
            tie_embeddings=c.tie_embeddings,
        )
        self.is_causal = c.causal
        if isinstance(positions, Relative):
            self.positions = positions
        absolute = c.position_kind == "absolute"
        self.pos_emb = nn.Embedding(c.max_seq_len, c.dim) if absolute else None
        if self.pos_emb is not None:
            nn.init.normal_(self.pos_emb.weight, std=0.02)

    def use_shorten_factor(self, factor: int | Sequence[int]) -> Self:
        """Shorten by another factor from now on; see `factor_choices` for training with several.

        Args:
            factor: an int for every stage, or one for each, outermost first.

        Raises:
            ValueError: the model has other stages, or projections that fix its factors.
        """
        if isinstance(self.transformer, HourglassTransformer):
            self.transformer.use_shorten_factor(factor)
        else:
            self.settings.factors_from(factor)
        return self

    def _placed(self, x: Tensor, offset: int) -> Tensor:
        if self.pos_emb is None:
            return x
        return x + self.pos_emb(torch.arange(offset, offset + x.shape[1], device=x.device))
