"""Dense masks of patterns, and what may be known of them; kept while they are small."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from foveal.common.memo import remember
from foveal.patterns import Pattern


class Mask(NamedTuple):
    """A pattern as dense attention wants it.

    allowed: (n_queries, n_keys) or (heads, n_queries, n_keys) bool.
    added: the same as numbers, 0 or -inf; all zeros in the rows without keys.
    dead: (..., n_queries, 1) bool, the queries without keys; None where there are none.
    unread: (n_keys) or (heads, n_keys) bool, the keys that no query reads; None where there are
        none.
    """

    allowed: Tensor
    added: Tensor
    dead: Tensor | None
    unread: Tensor | None


def build(
    pattern: Pattern,
    first: int,
    count: int,
    n_keys: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Mask:
    """The mask of `count` queries from `first` on; no value is looked at while compiling."""
    q = torch.arange(first, first + count, device=device)[:, None]
    allowed = pattern.rule(device)(q, torch.arange(n_keys, device=device)[None])
    heads = () if pattern.heads is None else (pattern.heads,)
    allowed = allowed.expand(*heads, count, n_keys)
    dead = ~allowed.any(-1, keepdim=True)
    unread = ~allowed.any(-2)
    added = torch.zeros(allowed.shape, dtype=dtype, device=device)
    added = added.masked_fill(~(allowed | dead), -torch.inf)
    if torch.compiler.is_compiling() or device.type == "meta" or _is_watched():
        return Mask(allowed, added, dead, unread)
    return Mask(
        allowed, added, dead if bool(dead.any()) else None, unread if bool(unread.any()) else None
    )


def _is_watched() -> bool:
    """Whether new tensors may be fake ones, whose values nobody can look at."""
    return torch._C._len_torch_dispatch_stack() > 0


@remember(entries=64, mebibytes=128)
def mask_of(
    pattern: Pattern, n_queries: int, n_keys: int, device: torch.device, dtype: torch.dtype
) -> Mask:
    """The mask of all queries: the one that was built before, if it is still kept."""
    with torch.no_grad():
        return build(pattern, 0, n_queries, n_keys, device, dtype)
