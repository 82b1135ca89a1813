"""Tokens as a model takes them, and what it says of those that its vocabulary does not have."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from foveal.generation.loop import Prompts


def as_index(tokens: Tensor) -> Tensor:
    """Tokens of any int type, and of any shape, as those that an embedding reads."""
    return tokens if tokens.dtype in (torch.int64, torch.int32) else tokens.long()


def are_ints(tokens: Tensor) -> bool:
    """Whether the dtype of tokens, of any shape, is one of whole numbers."""
    return not (tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool)


def embedded(
    look_up: Callable[[Tensor], Tensor], tokens: Tensor, num_tokens: int, name: str = "tokens"
) -> Tensor:
    """An embedding's rows of tokens of any int type: (...) -> (..., dim).

    Raises:
        ValueError: a token that it does not have, on a CPU, which looks anyway; to look elsewhere
            would mean to wait.
    """
    index = as_index(tokens)
    if torch.compiler.is_compiling():
        return look_up(index)
    try:
        return look_up(index)
    except IndexError:
        check_within(name, index, num_tokens)
        raise


def check_within(name: str, tokens: Tensor, num_tokens: int) -> None:
    """Raise ValueError for a token (any shape, an int type) that the vocabulary does not have."""
    if not tokens.numel():
        return
    tokens = tokens.long()  # small unsigned types know no minimum
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= num_tokens:
        raise ValueError(
            f"{name} must hold tokens from 0 to {num_tokens - 1}, got values from {low} to {high} "
            f"({num_tokens=})."
        )


def check_vocabulary(prompt: Prompts, num_tokens: int) -> None:
    """Raise ValueError for a token of a prompt that the vocabulary does not have."""
    for row in [prompt] if isinstance(prompt, Tensor) else prompt:
        values = torch.as_tensor(row)
        if values.numel() and not are_ints(values):
            raise ValueError(f"prompt must hold tokens of an int type, got {values.dtype}.")
        check_within("prompt", values, num_tokens)
