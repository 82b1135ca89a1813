"""The tiles of a plan, a chunk at a time, as tensors on the device of the call.

Legend of shapes: B batch, H heads, N queries, M keys, D head_dim, V head_dim of v; inside a chunk:
b sequences, h heads, t tiles, and in a tile q queries and k keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from foveal.ops.mods.plan import Plan, Tiles

CHUNK = 1 << 20
"""Scores in one chunk, unless one tile of one head has more."""


@dataclass(frozen=True, eq=False)
class Chunk:
    """Some tiles of some heads of some sequences; all tensors on the device of the call.

    batch, heads: (b,) and (h,) numbers.
    queries, keys: (t, q) and (t, k) positions.
    hidden: (1, 1, t or 1, q, k) bool, the pairs that are not allowed; None where all are.
    unread: (1, 1, t or 1, k, 1) bool, keys that no query of their tile reads; None where all are.
    """

    batch: Tensor
    heads: Tensor
    queries: Tensor
    keys: Tensor
    hidden: Tensor | None
    unread: Tensor | None

    def rows(self, x: Tensor, positions: Tensor, repeats: int = 1) -> Tensor:
        """Which rows of x (B, H / repeats, tokens, E), laid flat, the positions are: one row."""
        heads = self.heads // repeats
        lead = self.batch[:, None] * x.shape[1] + heads
        return (lead[:, :, None, None] * x.shape[2] + positions).flatten()

    def take(self, x: Tensor, positions: Tensor, repeats: int = 1) -> Tensor:
        """x (B, H / repeats, tokens, E), contiguous -> (b, h, t, items, E)."""
        flat = x.view(-1, x.shape[-1])
        shape = (len(self.batch), len(self.heads), *positions.shape, x.shape[-1])
        return flat.index_select(0, self.rows(x, positions, repeats)).view(shape)


def chunks(plan: Plan, q: Tensor) -> Iterator[Chunk]:
    """All chunks of a call, always in the same order; q (B, H, N, D)."""
    for part in plan.parts:
        batch = _numbers(part.batch, q.shape[0])
        heads = _numbers(part.heads, q.shape[1])
        for tiles in part.tiles:
            num_k = tiles.read.shape[1] * plan.cells.columns.size
            tile = max(1, tiles.num_q * num_k)
            num_tiles = max(1, min(len(tiles.number), CHUNK // tile))
            num_heads = max(1, min(len(heads), CHUNK // (tile * num_tiles)))
            num_batch = max(1, CHUNK // (tile * num_tiles * num_heads))
            for first in range(0, len(tiles.number), num_tiles):
                own = tiles.take(slice(first, first + num_tiles))
                yield from _of_tiles(plan, own, batch, heads, (num_batch, num_heads), q.device)


def _numbers(chosen: tuple[int, ...] | None, count: int) -> Tensor:
    if chosen is None:
        return torch.arange(count, device="cpu")
    return torch.tensor(chosen, device="cpu")


def _of_tiles(
    plan: Plan,
    tiles: Tiles,
    batch: Tensor,
    heads: Tensor,
    most: tuple[int, int],
    device: torch.device,
) -> Iterator[Chunk]:
    queries, keys = plan.queries(tiles).to(device), plan.keys(tiles).to(device)
    own = plan.cells.kinds.shape
    known: dict[tuple[int, int], tuple[Tensor | None, Tensor | None]] = {}
    for b in batch.split(most[0]):
        for h in heads.split(most[1]):
            at = (int(b[0]) if own[0] > 1 else 0, int(h[0]) if own[1] > 1 else 0)
            if at not in known:
                known = {at: _masks(plan.mask(tiles, at), device)}
            yield Chunk(b.to(device), h.to(device), queries, keys, *known[at])


def _masks(mask: Tensor | None, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
    """mask (t or 1, q, k) bool -> `hidden` and `unread` of a chunk."""
    if mask is None:
        return None, None
    hidden = ~mask[None, None]
    unread = hidden.all(-2)[..., None]
    return hidden.to(device), unread.to(device) if bool(unread.any()) else None
