"""Patterns in which a block of queries reads the same blocks of keys, counted from its own.

Keys and values are cut into blocks as the queries are; the block of keys that stands `o` blocks
from a block of queries is then a slice, and nothing is looked up.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from foveal.common.symbols import take_first
from foveal.ops.lowered.call import Lowered, Part, allowed, gained, softmax
from foveal.patterns import Pattern

SMALLEST, LARGEST = 64, 512
"""Queries of a block: of small ones many have keys in common that are copied for each, and of
large ones the first and the last query read other keys."""


def band_plan(pattern: Pattern, longest: int | None) -> tuple[int, list[int]] | None:
    """(queries of a block, the blocks that it reads, counted from its own); None where there is no
    such rule, or it is not known how far a query reads.

    Args:
        longest: more tokens there will never be; None where nobody knows.
    """
    if pattern.heads is not None:
        return None
    back, ahead = pattern.band() or (None, None)
    if back is not None and ahead is not None:
        block = SMALLEST
        while block < min(back + ahead, LARGEST):
            block *= 2
        return block, list(range(-back // block, -(-ahead // block) + 1))
    period = pattern.period
    if longest is None or period is None or period > longest:
        return None
    block = -(-SMALLEST // period) * period
    return block, _offsets(pattern, block, -(-longest // block))


def _offsets(pattern: Pattern, block: int, count: int) -> list[int]:
    """Blocks from -count to count that some query of a block reads; the period divides it."""
    own = torch.arange(count * block, (count + 1) * block, device="cpu")[:, None]
    found = []
    for at in range(2 * count + 1):
        keys = torch.arange(at * block, (at + 1) * block, device="cpu")
        if bool(pattern.allows(own, keys).any()):
            found.append(at - count)
    return found


def banded(call: Lowered, block: int, offsets: list[int]) -> Part:
    """The call by a plan of `band_plan`."""
    length = call.q.shape[2]
    count = (length + block - 1) // block
    low, high = min(0, *offsets), max(0, *offsets)
    # written so that symbols cancel: `count` blocks are there after padding, whatever the length
    fill = count * block - length
    start = torch.arange(count, device=call.q.device)[:, None] * block
    inside = torch.arange(block, device=call.q.device)
    k_idx = torch.cat([start + o * block + inside for o in offsets], 1)
    exists = (k_idx >= 0) & (k_idx < length)
    q_idx, k_idx = (start + inside).clamp(max=length - 1), k_idx.clamp(0, length - 1)
    q = pad(call.q, (0, 0, 0, fill)).unflatten(2, (count, block))

    def read(x: Tensor) -> Tensor:
        x = pad(x, (0, 0, -low * block, fill + high * block))
        x = x.unflatten(2, (count + high - low, block))
        return torch.cat([x[:, :, o - low : o - low + count] for o in offsets], 3)

    mask, bias = allowed(call, q_idx, k_idx, exists), gained(call, q_idx, k_idx)
    out, lse = softmax(call, q, read(call.k), read(call.v), mask, bias, call.may_be_dead)
    return take_first(out, 2, length), None if lse is None else take_first(lse, 2, length)
