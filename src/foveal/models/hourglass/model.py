"""The Hourglass language model in its plain form."""

from __future__ import annotations

from typing import Any

from foveal.models.causal import CausalLM
from foveal.models.hourglass.config import SIZES, HourglassConfig
from foveal.models.hourglass.stage import build_stage
from foveal.models.registry import register


@register(SIZES)
class HourglassTransformerLM(CausalLM):
    """Language model whose inner layers run over a shortened sequence.

    Nawrot et al., "Hierarchical Transformers Are More Efficient Language Models" (2021).
    Differs from the paper in: rotary positions in place of relative attention; the mean over a
    group counts real tokens only, so that the first group is not diluted by the shift's zeros.

    Args:
        config: a HourglassConfig; or give its keywords, which win where both are given:
            num_tokens=256, dim=512, max_seq_len=1024, depth=(4, 2, 4), shorten_factor=2, heads=8,
            dim_head=64, kv_heads=None, attn_resampling=True, updown_sample_type="naive",
            causal=True, pattern=None, ff_mult=4, activation="gelu", dropout=0.,
            tie_embeddings=False, rotary=True. See HourglassConfig for their meaning.

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

    def __init__(self, config: HourglassConfig | None = None, /, **options: Any) -> None:
        c = HourglassConfig.resolve(config, options)
        super().__init__(
            c,
            build_stage(c),
            num_tokens=c.num_tokens,
            dim=c.dim,
            max_seq_len=c.max_seq_len,
            dropout=c.dropout,
            tie_embeddings=c.tie_embeddings,
        )
        self.is_causal = c.causal
