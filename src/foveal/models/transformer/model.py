"""A pre-norm decoder over any patterns."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from foveal.layers import AlibiPositions, PositionBias, Rotary, Stack, T5Positions
from foveal.layers.checks import head_size
from foveal.layers.packing import Packing
from foveal.models.causal import CausalLM
from foveal.models.registry import register
from foveal.models.transformer.config import SIZES, TransformerConfig


@register(SIZES)
class TransformerLM(CausalLM):
    """Pre-norm transformer language model in which every layer takes a pattern.

    Args:
        config: a TransformerConfig; or give its keywords, which win where both are given:
            num_tokens=256, dim=512, depth=6, max_seq_len=1024, heads=8, dim_head=64,
            pattern=Full(causal=True), kv_heads=None, ff_mult=4, activation="gelu", dropout=0.,
            tie_embeddings=False, rotary=True, positions=None, softcap=None, sinks=False. See
            TransformerConfig for their meaning.

    Raises:
        ValueError: an unknown keyword or sizes that do not fit.

    Example:
        >>> import torch
        >>> from foveal import patterns as P
        >>> from foveal.models import TransformerLM
        >>> model = TransformerLM(dim=32, depth=2, heads=2, pattern=P.SlidingWindow(64))
        >>> model(torch.zeros(1, 100, dtype=torch.long)).shape
        torch.Size([1, 100, 256])
    """

    family = "transformer"
    packs = True
    config_class = TransformerConfig
    recordable = True

    def __init__(self, config: TransformerConfig | None = None, /, **options: Any) -> None:
        c = TransformerConfig.resolve(config, options)
        dim_head = head_size(c.dim, c.heads, c.dim_head)
        body = Stack(
            c.dim,
            c.depth,
            c.patterns,
            heads=c.heads,
            dim_head=dim_head,
            kv_heads=c.kv_heads,
            rotary=self._positions(c, dim_head),
            ff_mult=c.ff_mult,
            activation=c.activation,
            dropout=c.dropout,
            softcap=c.softcap,
            sinks=c.sinks,
        )
        super().__init__(
            c,
            body,
            num_tokens=c.num_tokens,
            dim=c.dim,
            max_seq_len=c.max_seq_len,
            dropout=c.dropout,
            tie_embeddings=c.tie_embeddings,
        )
        self.is_causal = all(pattern.is_causal for pattern in c.patterns)
        if c.knows_places_by in ("alibi", "t5"):
            self.recordable = False  # a recorded step reads all places alike

    def forward(
        self,
        tokens: Tensor,
        mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        targets: Tensor | None = None,
        chunk: int | None = None,
    ) -> Tensor:
        """Logits of every position, or its loss.

        Args:
            tokens: (batch, length) int.
            mask: (batch, length) bool, True = real; what is not real influences nothing real.
            position_ids: (batch, length) int, of rows that hold several documents (packing): 0, 1,
                2, ... in each of them. Documents get what they get alone: nothing is read across
                their borders, and positions and patterns restart.
            targets: (batch, length) int64, the token after each: asks for losses in nats, 0 where
                a target is -100.
            chunk: of losses, make the logits of so many tokens at a time, in the backward pass
                too: less memory for long sequences. None: of all.

        Returns:
            (batch, length, num_tokens); (batch, length) where targets are given.

        Raises:
            ValueError: shapes that do not fit, more tokens than max_seq_len, positions that do not
                restart, or both a mask and positions.
        """
        if position_ids is None:
            return super().forward(tokens, mask, targets=targets, chunk=chunk)
        if mask is not None or position_ids.shape != tokens.shape:
            raise ValueError(
                f"position_ids must be of the shape of tokens {tuple(tokens.shape)} and without "
                f"a mask (give padding a document), got {tuple(position_ids.shape)}."
            )
        if self.sharing is not None:
            raise ValueError("a row is either packed with documents or shared by ranks, not both.")
        self._check_tokens(tokens, None)
        x = self._embed(tokens).flatten(0, 1)[None]
        packing: Any = Packing(position_ids)
        x = self._body(x, packing)[0].unflatten(0, tokens.shape)
        return self._told(x, targets, chunk)

    @staticmethod
    def _positions(c: TransformerConfig, dim_head: int) -> bool | Rotary | PositionBias:
        if c.knows_places_by == "alibi":
            return AlibiPositions(c.heads)
        if c.knows_places_by == "t5":
            causal = all(pattern.is_causal for pattern in c.patterns)
            return T5Positions(c.heads, bidirectional=not causal)
        return Rotary(dim_head) if c.knows_places_by == "rotary" else False
