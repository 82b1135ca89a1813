"""The stretch of keys that some queries read."""

from __future__ import annotations

from typing import Any

import torch

from foveal.common.memo import remember

BLOCK = 64
"""Keys that are left out or taken together."""


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
