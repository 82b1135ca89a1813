"""Random numbers that are hashes of what they are for: the same wherever they are drawn."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_STEP, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""Of SplitMix64: between one number and the next, and the factors of its finaliser."""
STEP = np.uint64(_STEP)
_SPREAD = -1640531527  # the same for 32 bits
_ROUNDS = ((15, 0x2C1B3C6D), (12, 0x297A2D39), (15, 0))


def mix(value: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64, of uint64: every input bit moves every output bit."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(_FIRST)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(_SECOND)
    return value ^ (value >> np.uint64(31))


def mixed(seed: Tensor | int, *numbers: Tensor | int) -> Tensor:
    """64 bits that depend on all of the numbers: int64 tensors that broadcast -> int64."""
    words = torch.as_tensor(seed)
    for number in numbers:
        words = words ^ (torch.as_tensor(number) + 1) * _signed(_STEP)
        words = (words ^ unsigned_shift(words, 30)) * _signed(_FIRST)
        words = (words ^ unsigned_shift(words, 27)) * _signed(_SECOND)
        words = words ^ unsigned_shift(words, 31)
    return words


def unsigned_shift(words: Tensor, by: int) -> Tensor:
    """int64 words to the right, as if they had no sign to shift in."""
    return (words >> by) & ((1 << (64 - by)) - 1)


def _signed(word: int) -> int:
    """64 bits as int64 has them."""
    return word - (1 << 64) if word >> 63 else word


def row_words(keys: Tensor, count: int) -> Tensor:
    """`count` random words for each row: (rows, count) int32, of keys (rows,) int64.

    In operations that every device and compiler has, and that are fast where there are no 64-bit
    products.
    """
    own = (keys >> 32).to(torch.int32)[:, None]
    words = (torch.arange(count, dtype=torch.int32, device=keys.device) * _SPREAD) ^ own
    for shift, factor in _ROUNDS:
        shifted = words >> shift
        shifted &= (1 << 32 - shift) - 1  # as if words had no sign
        words ^= shifted
        if factor:
            words *= factor
    return words
