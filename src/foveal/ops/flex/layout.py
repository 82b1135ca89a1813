"""How a call is laid out for FlexAttention: the order of its tokens, and its block mask.

FlexAttention computes blocks of consecutive tokens. In raster order a block of an image is a
strip a few rows high, which touches many more keys than a square one; the tile plan already says
which queries belong together, so its order is taken wherever fewer blocks are then visited.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from foveal.common.memo import remember
from foveal.patterns import Full, Pattern
from foveal.patterns.blockmask import MaskMod, analytic_block_mask, mask_mod, to_block_mask
from foveal.patterns.subclasses import is_a
from foveal.patterns.tiling import TileGroup, Tiling

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

GAIN = 0.8
"""Tokens are reordered where that leaves at most this share of the blocks."""


@dataclass(frozen=True, eq=False)
class Layout:
    """How a call is laid out.

    order: (tokens,) the token that stands at each place, or None as they are.
    place: (tokens,) the place of each token, or None.
    """

    block_mask: BlockMask
    order: Tensor | None = None
    place: Tensor | None = None


@remember(entries=64)
def layout(pattern: Pattern, length: int, block: int, device: str) -> Layout:
    """The layout of a self-attention of `length` keys in blocks of `block` tokens."""
    if pattern.heads is not None or is_a(pattern, Full):
        return Layout(analytic_block_mask(pattern, length, block, device))
    if type(pattern).overlap is Pattern.overlap:  # borders of blocks tell nothing
        exists = getattr(pattern.rule(), "exists", None)  # of pooled keys
        counts = count_pairs(pattern.tiles(length), None, block, exists)
        return Layout(_block_mask(pattern, length, counts, block, device))
    in_order = analytic_block_mask(pattern, length, block, device)
    order = plan_order(pattern, length)
    if order is None:
        return Layout(in_order)
    place = order.argsort()
    counts = count_pairs(pattern.tiles(length), place, block)
    if int((counts > 0).sum()) > GAIN * int(in_order.to_dense().sum()):
        return Layout(in_order)
    order = order.to(device)
    mask = _block_mask(pattern, length, counts, block, device, order)
    return Layout(mask, order, place.to(device))


def plan_order(pattern: Pattern, length: int) -> Tensor | None:
    """Tokens in the order of the tile plan, or None where that is the order they have."""
    tiling = pattern.tiles(length)
    if tiling.num_queries != length:
        return None
    tiles = [tile for group in tiling.groups for tile in group.queries.index().unbind()]
    tiles.sort(key=lambda tile: int(tile[0]))
    order = torch.cat(tiles) if tiles else torch.arange(0, device="cpu")
    missing = torch.ones(length, dtype=torch.bool, device="cpu").index_fill_(0, order, False)
    order = torch.cat([order, missing.nonzero()[:, 0]])  # queries without keys stand in no tile
    return None if bool((order.diff() == 1).all()) else order


def count_pairs(
    tiling: Tiling, place: Tensor | None, block: int, exists: Tensor | None = None
) -> Tensor:
    """Allowed pairs in each block: (query blocks, key blocks) int64; reads the plan's tiles.

    place: (tokens,) where each token stands, or None where it is.
    exists: (num_keys,) bool, keys that stand for anything; the plan of pooled keys names others.
    """
    num_q, num_k = (-(-n // block) for n in (tiling.num_queries, tiling.num_keys))
    counts = torch.zeros(num_q * num_k, dtype=torch.int64, device="cpu")

    def block_of(tokens: Tensor) -> Tensor:
        return (tokens if place is None else place[tokens]) // block

    for group in tiling.groups:
        q_block, k_block = block_of(group.queries.index()), block_of(group.key_index())
        for own in _distinct(q_block):
            pairs = _pairs_by_key(group, q_block == own[:, None])
            if exists is not None:
                pairs = pairs * exists[group.key_index()]
            at = own.clamp(min=0)[:, None] * num_k + k_block
            counts.index_add_(0, at.flatten(), pairs.flatten())
    return counts.view(num_q, num_k)


def _distinct(blocks: Tensor) -> list[Tensor]:
    """The distinct numbers of each row, one of each row at a time; (tiles,) each, -1 = no more."""
    ordered = blocks.sort(1).values
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[:, 1:] = ordered.diff(dim=1) > 0
    rank = first.cumsum(1) - 1
    found = []
    for number in range(int(rank.max()) + 1):
        here = first & (rank == number)
        found.append(torch.where(here, ordered, -1).amax(1))
    return found


def _pairs_by_key(group: TileGroup, chosen: Tensor) -> Tensor:
    """Allowed pairs of each key with the chosen queries (tiles, tile_q): (tiles, tile_k)."""
    if group.mask is None:
        return chosen.sum(1, keepdim=True).expand(-1, group.tile_k)
    mask, own = group.mask.float(), chosen.float()
    if len(mask) == 1:
        return (own @ mask[0]).long()
    return (own[:, None] @ mask)[:, 0].long()


def _block_mask(
    pattern: Pattern,
    length: int,
    counts: Tensor,
    block: int,
    device: str,
    order: Tensor | None = None,
) -> BlockMask:
    full = counts == block * block
    partial = (counts > 0) & ~full
    rule = mask_mod(pattern, device)
    reordered = rule if order is None else _reordered(rule, order)
    lengths = (pattern.num_queries(length), length)
    return to_block_mask(partial, full, block, reordered, lengths, device)


def _reordered(rule: MaskMod, order: Tensor) -> MaskMod:
    def allowed(batch: Tensor, head: Tensor, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        return rule(batch, head, order[q_idx], order[k_idx])

    return allowed
