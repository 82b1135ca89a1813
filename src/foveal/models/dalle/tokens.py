"""Words and image tokens as DALLE takes them, and how well they were foretold."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.common.checks import check_dense
from foveal.common.dtypes import wide
from foveal.layers.weights import is_traced
from foveal.models.vocabulary import check_within


def checked_text(text: Tensor, longest: int, vocabulary: int) -> Tensor:
    """Text (batch, words) as int64.

    Raises:
        ValueError: of another shape or type, longer than `longest`, or a token that is none.
    """
    if torch.compiler.is_compiling():
        return text.long()
    check_dense("text", text)
    if text.ndim != 2 or text.is_floating_point() or text.dtype == torch.bool:
        raise ValueError(
            f"text must be (batch, words) of an int type, got shape {tuple(text.shape)} of "
            f"{text.dtype}."
        )
    if text.shape[1] > longest:
        raise ValueError(
            f"text must have at most text_seq_len={longest} tokens, got "
            f"{text.shape[1]}; cut it, or build the model with a larger text_seq_len."
        )
    text = text.long()
    check_range("text", text, vocabulary)
    return text


def checked_image(image: Tensor, batch: int, grid: tuple[int, int], vocabulary: int) -> Tensor:
    """Image tokens (batch, any) as int64.

    Raises:
        ValueError: of another shape or type, more than the grid has, or a token that is none.
    """
    if torch.compiler.is_compiling():
        return image.long()
    check_dense("image", image)
    if image.ndim != 2 or image.is_floating_point() or image.shape[0] != batch:
        raise ValueError(
            "image must be pictures (batch, channels, height, width) or int tokens (batch, "
            f"tokens) with batch={batch}, got shape {tuple(image.shape)} of {image.dtype}."
        )
    most = grid[0] * grid[1]
    if image.shape[1] > most:
        raise ValueError(
            f"image must have at most {most} tokens, which is a grid of "
            f"{grid[0]} x {grid[1]}, got {image.shape[1]}."
        )
    image = image.long()
    check_range("image", image, vocabulary)
    return image


def check_range(name: str, tokens: Tensor, most: int) -> None:
    """Raise ValueError unless tokens of any shape are below `most`, where that costs nothing."""
    if torch.compiler.is_compiling():
        return
    # elsewhere than on a CPU the check would wait, and stand-ins hold no values
    if tokens.device.type == "cpu" and not is_traced():
        check_within(name, tokens, most)


def cross_entropy(logits: Tensor, labels: Tensor, count: int | None = None) -> Tensor:
    """Mean in nats a token: logits (batch, tokens, vocabulary), labels (batch, tokens) -> ().

    Args:
        count: tokens of all ranks, of which these are a part: the part of their mean.
    """
    values, right = wide(logits).flatten(0, 1), labels.flatten()
    if count is None:
        return F.cross_entropy(values, right)
    return F.cross_entropy(values, right, reduction="sum") / max(1, count)
