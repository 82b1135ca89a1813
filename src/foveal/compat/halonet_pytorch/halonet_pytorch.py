"""HaloAttention with the signature of halonet-pytorch 0.0.5, and that package's helpers.

Differs from the package in: maps need not be multiples of the block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from foveal.layers import halo, relative_position

__all__ = [
    "HaloAttention",
    "RelPosEmb",
    "to",
    "pair",
    "expand_dim",
    "rel_to_abs",
    "relative_logits_1d",
]


class RelPosEmb(relative_position.RelPosEmb):
    """Logits of queries against embeddings of where a key stands; see layers.RelPosEmb.

    Args:
        block_size, rel_size: sides of a block of queries and of its window of keys.
        dim_head: features of a query.
    """

    def __init__(self, block_size: int, rel_size: int, dim_head: int) -> None:
        super().__init__(block_size, rel_size, dim_head)


class HaloAttention(halo.HaloAttention):
    """Blocks of pixels attend to themselves and a border around them; see layers.HaloAttention.

    Args:
        dim: features of the map.
        block_size, halo_size: sides of a block, and of the border around it.
        dim_head, heads: features of a head, and their number.

    Raises:
        ValueError: sizes that make no sense.
    """

    def __init__(
        self, *, dim: int, block_size: int, halo_size: int, dim_head: int = 64, heads: int = 8
    ) -> None:
        if halo_size == 0:
            raise ValueError("halo_size must be at least 1, got halo_size=0; foveal's takes 0.")
        super().__init__(dim, block_size, halo_size, dim_head, heads)


def to(x: Tensor) -> dict[str, Any]:
    """Keywords that make a tensor like x."""
    return {"device": x.device, "dtype": x.dtype}


def pair(x: Any) -> tuple[Any, ...]:
    """A tuple as it is, anything else twice."""
    return x if isinstance(x, tuple) else (x, x)


def expand_dim(t: Tensor, dim: int, k: int) -> Tensor:
    """A new dimension of size k at `dim`, without a copy."""
    t = t.unsqueeze(dim)
    sizes = [-1] * t.ndim
    sizes[dim] = k
    return t.expand(sizes)


def rel_to_abs(x: Tensor) -> Tensor:
    """Logits by offset (batch, queries, 2 keys - 1) -> logits by key (batch, queries, keys)."""
    queries, keys = x.shape[1], (x.shape[2] + 1) // 2
    query, key = (torch.arange(n, device=x.device) for n in (queries, keys))
    offset = key[None] - query[:, None] + keys - 1
    return x.gather(2, offset.expand(len(x), -1, -1))


def relative_logits_1d(q: Tensor, rel_k: Tensor) -> Tensor:
    """Queries (batch, height, width, dim) and offsets (2 keys - 1, dim) -> logits.

    Returns:
        (batch, height, keys, width, keys), the same for each of the first keys.
    """
    logits = (q @ rel_k.T).flatten(0, 1)
    logits = rel_to_abs(logits).unflatten(0, q.shape[:2])
    return expand_dim(logits, 2, logits.shape[-1])
