"""DeepSpeed's sparse attention in BERT and RoBERTa, and what long inputs of them need."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from foveal.common.checks import as_int
from foveal.integrations.deepspeed.attention import Config, SparseSelfAttention
from foveal.integrations.deepspeed.sparsity_config import FixedSparsityConfig

RESERVED = {"bert": 0, "roberta": 2}
"""Rows in front of the table of positions that stand for none."""


class BertSparseSelfAttention(nn.Module):
    """Queries, keys and values of BERT's attention, and sparse attention of them.

    Differs from BERT's own in: weights are not dropped, as in DeepSpeed.

    Args:
        config: with hidden_size and num_attention_heads.
        sparsity_config: None is FixedSparsityConfig of the config's heads.
        max_seq_length: longest sequence.

    Raises:
        ValueError: the heads do not divide hidden_size.
    """

    def __init__(
        self, config: Any, sparsity_config: Config | None = None, *, max_seq_length: int = 2048
    ) -> None:
        super().__init__()
        width, heads = config.hidden_size, config.num_attention_heads
        if width % heads:
            raise ValueError(
                f"num_attention_heads must divide hidden_size, got {heads} and {width}."
            )
        if sparsity_config is None:
            sparsity_config = FixedSparsityConfig(num_heads=heads)
        self.num_attention_heads, self.attention_head_size = heads, width // heads
        self.all_head_size = width
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.sparse_self_attention = SparseSelfAttention(
            sparsity_config, max_seq_length=max_seq_length
        )

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Attention of tokens to each other.

        Args:
            hidden_states: (batch, length, hidden_size).
            attention_mask: (batch, length) or (batch, 1, 1, length), added to the logits: 0 for a
                real token, a low number for padding.

        Returns:
            (batch, length, hidden_size).
        """
        query, key, value = (
            part(hidden_states).unflatten(-1, (self.num_attention_heads, -1)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        out = self.sparse_self_attention(query, key, value, key_padding_mask=attention_mask)
        return out.transpose(1, 2).flatten(2)


class InTransformers(BertSparseSelfAttention):
    """The same as transformers calls it: its masks are (batch, 1, length, length)."""

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **rest: Any
    ) -> tuple[Tensor, None]:
        """Attention and, in place of its weights, None."""
        if attention_mask is not None and attention_mask.ndim == 4:
            attention_mask = attention_mask[:, 0, 0]  # of padding: alike for every query
        if attention_mask is not None and attention_mask.dtype == torch.bool:
            real = attention_mask
            attention_mask = hidden_states.new_zeros(real.shape).masked_fill(~real, -torch.inf)
        return super().forward(hidden_states, attention_mask), None


class SparseAttentionUtils:
    """Helpers that put sparse attention into BERT and RoBERTa of transformers."""

    @staticmethod
    def extend_position_embedding(model: Any, max_position: int) -> Any:
        """Repeat the learned positions until there are max_position of them, in place.

        Differs from DeepSpeed in: any max_position is reached exactly, and RoBERTa's rows that
        stand for no position are kept.

        Raises:
            ValueError: there are as many already, or the model is neither BERT nor RoBERTa.
        """
        name, base = _base(model)
        embeddings, reserved = base.embeddings, RESERVED[name]
        table = embeddings.position_embeddings
        old = table.weight.shape[0] - reserved
        if as_int("max_position", max_position, 1) <= old:
            raise ValueError(
                f"max_position must be more than the {old} positions that the model has, got "
                f"{max_position}."
            )
        rows = torch.arange(max_position, device=table.weight.device) % old + reserved
        rows = torch.cat([torch.arange(reserved, device=rows.device), rows])
        table.weight = nn.Parameter(
            table.weight.detach()[rows], requires_grad=table.weight.requires_grad
        )
        table.num_embeddings = len(rows)
        for buffer, fill in (("position_ids", torch.arange), ("token_type_ids", torch.zeros)):
            if hasattr(embeddings, buffer):
                own = fill(len(rows), dtype=torch.long, device=rows.device)
                setattr(embeddings, buffer, own[None])
        model.config.max_position_embeddings = len(rows)
        return model

    @staticmethod
    def update_tokenizer_model_max_length(tokenizer: Any, max_position: int) -> Any:
        """Tell a tokenizer how long its texts may be."""
        tokenizer.model_max_length = max_position
        tokenizer.init_kwargs["model_max_length"] = max_position
        return tokenizer

    @staticmethod
    def replace_model_self_attention_with_sparse_self_attention(
        model: Any, max_position: int, sparsity_config: Config | None = None
    ) -> Any:
        """Sparse attention in every layer of an encoder, with the weights that it has, in place.

        Raises:
            ValueError: the model is neither BERT nor RoBERTa, or a decoder.
        """
        name, base = _base(model)
        if getattr(model.config, "is_decoder", False):
            raise ValueError(
                "model must be an encoder, for its caches are not sparse, got "
                "model.config.is_decoder=True; load it with is_decoder=False."
            )
        model.config.max_position_embeddings = max_position + RESERVED[name]
        SparseAttentionUtils.replace_self_attention_layer_with_sparse_self_attention_layer(
            model.config, base.encoder.layer, sparsity_config, max_seq_length=max_position
        )
        return model

    @staticmethod
    def replace_self_attention_layer_with_sparse_self_attention_layer(
        config: Any,
        layers: Iterable[Any],
        sparsity_config: Config | None = None,
        *,
        max_seq_length: int = 2048,
    ) -> Any:
        """The same of a list of layers."""
        for layer in layers:
            theirs = layer.attention.self
            ours = InTransformers(config, sparsity_config, max_seq_length=max_seq_length)
            ours.query, ours.key, ours.value = theirs.query, theirs.key, theirs.value
            layer.attention.self = ours
        return layers

    @staticmethod
    def pad_to_block_size(
        block_size: int,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        pad_token_id: int,
        model_embeddings: Any,
    ) -> tuple[int, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        """Inputs of a multiple of block_size tokens, which foveal itself does not ask for.

        Args:
            block_size: of the sparsity_config.
            input_ids, attention_mask, token_type_ids, position_ids: (batch, length) or None.
            inputs_embeds: (batch, length, features) or None.
            pad_token_id: what input_ids and position_ids are padded with.
            model_embeddings: makes embeddings of token ids, where inputs_embeds is given.

        Returns:
            how many tokens were added, and the five inputs.
        """
        given = input_ids if input_ids is not None else inputs_embeds
        if given is None:
            raise ValueError("input_ids or inputs_embeds must be given, got neither.")
        batch, length = given.shape[:2]
        count = -length % as_int("block_size", block_size, 1)
        if count and inputs_embeds is not None:
            more = torch.full((batch, count), pad_token_id, device=inputs_embeds.device)
            inputs_embeds = torch.cat([inputs_embeds, model_embeddings(more)], 1)
        fills = (pad_token_id, 0, 0, pad_token_id)
        ids, mask, types, positions = (
            x if x is None or not count else pad(x, (0, count), value=fill)
            for x, fill in zip(
                (input_ids, attention_mask, token_type_ids, position_ids), fills, strict=True
            )
        )
        return count, ids, mask, types, positions, inputs_embeds

    @staticmethod
    def unpad_sequence_output(pad_len: int, sequence_output: Tensor) -> Tensor:
        """Without the tokens that were added: (batch, length + pad_len, features)."""
        return sequence_output[:, : sequence_output.shape[1] - pad_len]


def _base(model: Any) -> tuple[str, Any]:
    """("bert" or "roberta", the model without its head)."""
    for name in RESERVED:
        if hasattr(model, name):
            return name, getattr(model, name)
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind in RESERVED and hasattr(model, "embeddings"):
        return str(kind), model
    raise ValueError(
        f"model must be a BERT or RoBERTa of transformers, got {type(model).__name__}."
    )
