"""HTransformer1D: a language model, or an encoder, over hierarchical attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from foveal.caches import DecodingState
from foveal.generation import Recompute
from foveal.models.causal import CausalLM
from foveal.models.htransformer.config import SIZES, HTransformerConfig
from foveal.models.htransformer.stack import make_stack
from foveal.models.registry import register


@register(SIZES)
class HTransformer1D(CausalLM):
    """Transformer whose cost grows with the length, not with its square; every pair interacts.

    Zhu & Soricut, "H-Transformer-1D: Fast One-Dimensional Hierarchical Attention for Sequences"
    (2021). Takes the keywords of the public h-transformer-1d.

    Args:
        config: an HTransformerConfig; or give its keywords: num_tokens=256, dim=512, depth=6,
            max_seq_len=8192, causal=False, heads=8, dim_head=64, ff_mult=4, block_size=128,
            reversible=False, shift_tokens=False, dropout=0., neighbors="adjacent", queries=None,
            relative_bias=False, ...; see HTransformerConfig.

    Raises:
        ValueError: an unknown keyword or sizes that do not fit.

    Differs from the paper in: rotary positions by default, instead of the hierarchical bias
    alone; a causal model keeps a query for each token (`queries="coarse"` is the paper's).

    Example:
        >>> import torch
        >>> from foveal.models import HTransformer1D
        >>> model = HTransformer1D(dim=32, depth=2, heads=2, dim_head=16, causal=True)
        >>> model(torch.zeros(1, 100, dtype=torch.long)).shape
        torch.Size([1, 100, 256])
    """

    family = "htransformer"
    config_class = HTransformerConfig
    settings: HTransformerConfig

    def __init__(self, config: HTransformerConfig | None = None, /, **options: Any) -> None:
        c = HTransformerConfig.resolve(config, options)
        super().__init__(
            c,
            make_stack(c),
            num_tokens=c.num_tokens,
            dim=c.dim,
            max_seq_len=c.max_seq_len,
            dropout=c.dropout,
            tie_embeddings=c.tie_embeddings,
        )
        self.is_causal = c.causal
        self._compat = c.compat is not None

    @torch.no_grad()
    def prefill(
        self, tokens: Tensor, max_length: int | None = None, chunk: int | None = None
    ) -> tuple[Tensor, Any]:
        """Prompt (batch, length) -> logits (batch, num_tokens), state, as in CausalLM.

        The package's mathematics has no state, so it starts over each time.
        """
        if self._compat:
            return Recompute(self).prefill(tokens)
        return super().prefill(tokens, max_length, chunk)

    @torch.no_grad()
    def extend(self, tokens: Tensor, cache: DecodingState | Tensor) -> tuple[Tensor, Any]:
        """Tokens (batch, count) -> logits (batch, count, num_tokens), state, as in CausalLM."""
        if isinstance(cache, Tensor):
            known = torch.cat((cache, tokens), 1)
            return self(known)[:, cache.shape[1] :], known
        return super().extend(tokens, cache)

    @torch.no_grad()
    def step(self, token: Tensor, cache: DecodingState | Tensor) -> tuple[Tensor, Any]:
        """Token (batch,) -> logits (batch, num_tokens), state, as in CausalLM."""
        if isinstance(cache, Tensor):
            return Recompute(self).step(token, cache)
        return super().step(token, cache)
