"""Padding and positions as transformers says them, in terms of rows without padding."""

from __future__ import annotations

import torch
from torch import Tensor

from foveal.models.causal import CausalLM


def check_mask(mask: Tensor | None, tokens: Tensor, seen: int) -> Tensor | None:
    """Which of the tokens are real: (batch, length) bool, or None if all are.

    Args:
        mask: (batch, length) or (batch, seen + length), 0 or False = padding.
        tokens: (batch, length).
        seen: columns before them.

    Raises:
        ValueError: a mask of another shape.
    """
    if mask is None:
        return None
    batch, width = tokens.shape
    if mask.ndim != 2 or len(mask) != batch or mask.shape[1] not in (width, seen + width):
        raise ValueError(
            f"attention_mask must be (batch, length) = ({batch}, {seen + width}), 0 = padding, "
            f"got shape {tuple(mask.shape)}; who reads whom within a row is the model's pattern."
        )
    real = mask[:, -width:] != 0
    return None if bool(real.all()) else real


def check_positions(
    positions: Tensor | None, mask: Tensor | None, tokens: Tensor, seen: int
) -> Tensor | None:
    """Positions (batch, length) that start again within a row; None for the plain ones.

    Plain are those that count columns, and those that count real tokens; what is said of padding
    does not matter.
    """
    if positions is None:
        return None
    width = tokens.shape[1]
    if (
        positions.ndim != 2
        or positions.shape[1] != width
        or len(positions) not in (1, len(tokens))
    ):
        raise ValueError(
            f"position_ids must be of the shape of input_ids {tuple(tokens.shape)}, got "
            f"{tuple(positions.shape)}."
        )
    positions = positions.expand(len(tokens), -1)
    columns = torch.arange(seen, seen + width, device=tokens.device).expand_as(tokens)
    if torch.equal(positions, columns.to(positions.dtype)):
        return None
    if mask is None or mask.shape[1] != seen + width:
        return positions
    real = (mask != 0).long()
    counted = (real.cumsum(1) - 1)[:, -width:]
    is_padding = real[:, -width:] == 0
    for plain in (columns, counted):
        if bool(((positions == plain) | is_padding).all()):
            return None
    return positions


def without_padding(model: CausalLM, tokens: Tensor, real: Tensor) -> Tensor:
    """Logits of rows that the model reads without their padding.

    Args:
        tokens, real: (batch, length).

    Returns:
        (batch, length, num_tokens); of padding, those of the real token before it, or any.
    """
    order = (~real).long().argsort(dim=1, stable=True)
    counts = real.sum(1).clamp(min=1)
    longest = int(counts.max())
    short = tokens.masked_fill(~real, 0).gather(1, order[:, :longest])
    if getattr(model.settings, "compat", None) is None:
        logits = model(short)  # zeros behind a row, which nothing before them reads
    else:
        logits = _one_by_one(model, short, counts)  # packages may read them
    place = (real.cumsum(1) - 1).clamp(min=0)
    return logits.gather(1, place[..., None].expand(-1, -1, logits.shape[-1]))


def _one_by_one(model: CausalLM, tokens: Tensor, counts: Tensor) -> Tensor:
    """Logits of the first tokens of each row, as many as counted; zeros behind them."""
    rows = [
        model(row[None, :count])[0] for row, count in zip(tokens, counts.tolist(), strict=True)
    ]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def without_first(labels: Tensor, real: Tensor | None) -> Tensor:
    """Labels (batch, length) without those that padding in front would have to predict."""
    if real is None:
        return labels
    before = torch.nn.functional.pad(real.cumsum(1)[:, :-1] > 0, (1, 0), value=True)
    return labels.masked_fill(~before.to(labels.device), -100)
