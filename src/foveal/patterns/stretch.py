"""Where the keys lie that some queries may read, by the interval form of a pattern."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from foveal.common.memo import remember

BLOCK = 64
"""Keys that are left out or taken together."""

COARSE = 128
"""Blocks that are looked at together first, where there are many of them."""


@remember(entries=1024)
def keys_between(pattern: Any, first: int, count: int, length: int) -> tuple[int, int]:
    """A stretch of keys [low, high) beyond which queries read nothing, by `overlap`.

    Args:
        pattern: any Pattern, whose file imports this one.
        first, count: the queries.
        length: keys.
    """
    if not count or not length:
        return 0, 0
    starts = torch.arange(0, length, BLOCK, device="cpu")
    ends = (starts + BLOCK - 1).clamp(max=length - 1)
    q_first, q_last = torch.tensor((first, first + count - 1), device="cpu").unbind()
    some = pattern.overlap(q_first, q_last, starts, ends)[0]
    found = some.expand(*some.shape[:-1], len(starts)).reshape(-1, len(starts)).any(0).nonzero()
    if not len(found):
        return 0, 0
    return int(starts[found[0, 0]]), int(ends[found[-1, 0]]) + 1


def keys_in_reach(pattern: Any, queries: Tensor, first: int, length: int, block: int) -> Tensor:
    """Keys of [first, length) in blocks that some query may reach: ascending, a superset.

    Of a long sequence large blocks are looked at before those within them.

    Args:
        queries: (count,) int64.
        block: keys that are left out or taken together.
    """
    ends = queries.min(), queries.max()
    keys, sizes = torch.tensor([first], device="cpu"), [length - first]
    if length - first > COARSE**2 * block:
        sizes.append(COARSE * block)
    for size, wider in zip([*sizes[1:], block], sizes, strict=True):
        starts = (keys[:, None] + torch.arange(0, wider, size, device="cpu")).flatten()
        starts = starts[starts < length]
        some = pattern.overlap(*ends, starts, (starts + size - 1).clamp(max=length - 1))[0]
        keys = starts[some.expand(starts.shape)]
    keys = (keys[:, None] + torch.arange(block, device="cpu")).flatten()
    return keys[keys < length]
