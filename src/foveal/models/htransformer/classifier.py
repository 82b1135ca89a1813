"""HTransformerClassifier: one answer for a whole sequence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from foveal.layers.checks import check_dropout, check_sizes
from foveal.layers.dropout import Dropout
from foveal.models.base import Model
from foveal.models.causal import check_tokens, only_real
from foveal.models.htransformer.config import HTransformerClassifierConfig
from foveal.models.htransformer.stack import make_stack
from foveal.models.registry import register
from foveal.models.vocabulary import embedded


@register({"htransformer_lra": {"dim": 512, "depth": 4, "ff_mult": 2, "block_size": 16}})
class HTransformerClassifier(Model):
    """Encoder over hierarchical attention, and a linear layer over its pooled tokens.

    Args:
        config: an HTransformerClassifierConfig; or give its keywords: num_classes=10, pool="mean",
            and those of HTransformer1D.

    Raises:
        ValueError: an unknown keyword or sizes that do not fit.

    Example:
        >>> import torch
        >>> from foveal.models import HTransformerClassifier
        >>> model = HTransformerClassifier(dim=32, depth=2, heads=2, dim_head=16, num_classes=3)
        >>> model(torch.zeros(1, 100, dtype=torch.long)).shape
        torch.Size([1, 3])
    """

    family = "htransformer_classifier"
    pipeline_tag = "text-classification"
    config_class = HTransformerClassifierConfig
    settings: HTransformerClassifierConfig
    is_causal = False

    def __init__(
        self, config: HTransformerClassifierConfig | None = None, /, **options: Any
    ) -> None:
        super().__init__()
        c = HTransformerClassifierConfig.resolve(config, options)
        check_sizes(num_tokens=c.num_tokens, dim=c.dim, max_seq_len=c.max_seq_len)
        check_dropout(c.dropout)
        self.settings, self.max_seq_len = c, c.max_seq_len
        self.token_emb = nn.Embedding(c.num_tokens, c.dim)
        nn.init.normal_(self.token_emb.weight, std=0.02)
        self.cls_token = nn.Parameter(torch.randn(c.dim) * 0.02) if c.pool == "cls" else None
        self.emb_dropout = Dropout(c.dropout)
        self.transformer = make_stack(c)
        self.head = nn.Linear(c.dim, c.num_classes)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits of every class.

        Args:
            tokens: (batch, length) int.
            mask: (batch, length) bool, True = real; what is not real influences nothing.

        Returns:
            (batch, num_classes); what a row without any real token gets says nothing.

        Raises:
            ValueError: shapes that do not fit, or more tokens than max_seq_len.
        """
        check_tokens(tokens, mask, self.max_seq_len)
        x = embedded(self.token_emb, tokens, self.settings.num_tokens)
        if self.settings.compat is None:
            x = only_real(x, mask)
        if self.cls_token is not None:
            x = torch.cat((self.cls_token.expand(x.shape[0], 1, -1), x), 1)
            if mask is not None:
                mask = torch.cat((mask.new_ones(x.shape[0], 1), mask), 1)
        x = self.transformer(self.emb_dropout(x), mask)
        return self.head(x[:, 0] if self.cls_token is not None else _mean(x, mask))


def _mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the real tokens: (batch, tokens, dim) -> (batch, dim)."""
    if mask is None:
        return x.mean(1)
    weight = mask[..., None].to(x.dtype)
    return (x * weight).sum(1) / weight.sum(1).clamp(min=1)
