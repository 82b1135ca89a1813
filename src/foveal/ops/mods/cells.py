"""A BlockMask in cells: what each tile of queries reads of each short run of keys.

The blocks that a BlockMask lists are cut into cells of a tile's queries and a few keys. Full
blocks need no look; inside partial blocks the `mask_mod` says what is allowed, and what it says is
kept once however many cells are alike: a causal mask has one diagonal.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from foveal.ops.mods.running import depends, mask_of
from foveal.patterns.tiling import MAX_TILE

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

CELL = 32
"""Most keys in a cell: narrow enough to follow a border, wide enough to be few."""

AT_ONCE = 1 << 20
"""Pairs for which a mask_mod is asked at one time."""

MOST_KEPT = 1 << 26
"""Bytes of masks that a plan may keep; beyond, the mask_mod is asked whenever a tile is run."""

PARTIAL, FULL = 1, 2
NOTHING, EVERYTHING, ASK = 0, 1, -1
"""What a cell is, beside numbers of masks: empty, full, or left to the mask_mod."""


@dataclass(frozen=True)
class Stretch:
    """How an axis is cut: pieces of equal size but for the last of a block.

    first: (pieces,) position of the first token.
    end: (pieces,) where the piece ends.
    block: (pieces,) the block that holds it; of a piece of many blocks, the first.
    size: most tokens of a piece.
    """

    first: Tensor
    end: Tensor
    block: Tensor
    size: int

    def positions(self, pieces: Tensor) -> tuple[Tensor, Tensor]:
        """(n,) pieces -> (n, size) positions, and which of them exist; others repeat the last."""
        first, end = self.first[pieces, None], self.end[pieces, None]
        at = first + torch.arange(self.size, device="cpu")
        return torch.minimum(at, end - 1), at < end


def cut(length: int, block: int, most: int) -> Stretch:
    """Blocks of an axis in equal pieces of at most `most` tokens."""
    block = max(1, min(block, length))
    pieces = -(-block // most)
    size = -(-block // pieces)
    number = torch.arange(-(-length // block), device="cpu").repeat_interleave(pieces)
    inner = torch.arange(pieces, device="cpu").repeat(-(-length // block)) * size
    first, limit = number * block + inner, (number + 1) * block
    end = torch.minimum(first + size, limit).clamp(max=length)
    real = first < end
    return Stretch(first[real], end[real], number[real], size)


def join(length: int, block: int, count: int) -> Stretch:
    """`count` small blocks at a time."""
    first = torch.arange(0, length, block * count, device="cpu")
    end = (first + block * count).clamp(max=length)
    return Stretch(first, end, first // block, block * count)


@dataclass(frozen=True, eq=False)
class Cells:
    """What each tile reads, for each batch and head that differ.

    kinds: (batch or 1, heads or 1, tiles, cells) int32: NOTHING, EVERYTHING, ASK, or the number
        of a row of `masks` and 2 more.
    masks: (distinct, tile_q, cell) bool.
    answer: (n, 4) places in `kinds` -> (n, tile_q, cell) bool, for cells that are left to ASK.
    """

    rows: Stretch
    columns: Stretch
    kinds: Tensor
    masks: Tensor
    answer: Callable[[Tensor], Tensor]


def block_kinds(block_mask: BlockMask, lengths: tuple[int, int]) -> Tensor:
    """What a BlockMask lists: (batch, heads, query blocks, key blocks) uint8, on the CPU.

    0 is nothing, PARTIAL or FULL; a block that is listed as both is full.
    """
    sizes = [max(1, min(one, n)) for one, n in zip(block_mask.BLOCK_SIZE, lengths, strict=True)]
    num_q, num_k = (-(-n // size) for n, size in zip(lengths, sizes, strict=True))
    lists = [(block_mask.kv_num_blocks, block_mask.kv_indices, PARTIAL)]
    count, index = block_mask.full_kv_num_blocks, block_mask.full_kv_indices
    if count is not None and index is not None:
        lists.append((count, index, FULL))
    found = torch.zeros(*lists[0][0].shape[:2], num_q, num_k + 1, dtype=torch.uint8, device="cpu")
    for count, index, kind in lists:
        count, index = count.cpu()[..., :num_q, None], index.cpu()[..., :num_q, :].long()
        listed = torch.arange(index.shape[-1], device="cpu") < count
        listed = listed & (index >= 0) & (index < num_k)
        at = torch.where(listed, index, num_k)
        found.scatter_(-1, at, torch.full_like(at, kind, dtype=torch.uint8))
    return found[..., :num_k]


def cells_of(
    block_mask: BlockMask, lengths: tuple[int, int], batch: int, heads: int, device: torch.device
) -> Cells:
    """The cells of a BlockMask for so many sequences and heads.

    Its `mask_mod` may tell sequences and heads apart where its blocks do not.
    """
    from torch.nn.attention.flex_attention import noop_mask

    kinds, mod = block_kinds(block_mask, lengths), block_mask.mask_mod
    asks = mod is not noop_mask and bool((kinds == PARTIAL).any())
    if asks:
        sizes = _distinct(mod, kinds.shape[:2], (batch, heads), device)
        kinds = kinds.expand(*sizes, -1, -1)
    else:
        kinds = torch.where(kinds == PARTIAL, FULL, kinds)
    q_block, k_block = block_mask.BLOCK_SIZE
    columns = cut(lengths[1], k_block, CELL)
    rows = _tiles_of(kinds, lengths[0], q_block)
    return _Builder(kinds, rows, columns, q_block, mod, device).cells()


def _distinct(
    mod: Callable, own: torch.Size, full: tuple[int, int], device: torch.device
) -> tuple[int, int]:
    """How many sequences and heads have masks of their own."""
    numbers = [torch.arange(n, device=device) for n in full]
    zero = torch.zeros((), dtype=torch.long, device=device)
    differ = depends(mod, numbers[0], numbers[1], (zero, zero))
    by_mod = [n if n > 1 and one else 1 for n, one in zip(full, differ, strict=True)]
    return max(own[0], by_mod[0]), max(own[1], by_mod[1])


def _tiles_of(kinds: Tensor, length: int, block: int) -> Stretch:
    """Tiles of queries: pieces of a large block, or some small ones that read the same."""
    if 2 * block > MAX_TILE or block >= length:
        return cut(length, block, MAX_TILE)
    listed, best = kinds > 0, (float("inf"), 1)
    count = 1
    while count * block <= MAX_TILE:
        read = torch.nn.functional.pad(listed, (0, 0, 0, -listed.shape[2] % count))
        visited = read.unflatten(2, (-1, count)).any(3).sum() * (count * block + MAX_TILE // 2)
        best = min(best, (float(visited), -count))
        count *= 2
    return join(length, block, -best[1])


@dataclass
class _Builder:
    """Blocks -> cells."""

    kinds: Tensor  # (batch, heads, query blocks, key blocks)
    rows: Stretch
    columns: Stretch
    q_block: int
    mod: Callable
    device: torch.device

    def cells(self) -> Cells:
        found = self._by_block()
        mixed = (found == ASK).nonzero()
        masks: list[Tensor] = []
        seen: dict[bytes, int] = {}
        step = max(1, AT_ONCE // (self.rows.size * self.columns.size))
        for part in mixed.split(step):
            numbers = self._number(self._masks(part), seen, masks)
            found[tuple(part.T)] = numbers
            if len(masks) * self.rows.size * self.columns.size > MOST_KEPT:
                found, masks = self._by_block(), []
                break
        shape = (0, self.rows.size, self.columns.size)
        return Cells(
            self.rows,
            self.columns,
            found,
            torch.stack(masks) if masks else torch.zeros(shape, dtype=torch.bool, device="cpu"),
            self._masks,
        )

    def _by_block(self) -> Tensor:
        """Cells by what the blocks are alone: (batch, heads, tiles, cells) int32."""
        cut_short = self.columns.end - self.columns.first < self.columns.size
        kinds = self.kinds.index_select(3, self.columns.block)
        count = max(1, self.rows.size // min(self.q_block, self.rows.size))
        if count > 1:
            kinds = torch.nn.functional.pad(kinds, (0, 0, 0, -kinds.shape[2] % count))
            parts = kinds.unflatten(2, (-1, count))
            # the last tile may hold fewer blocks
            real = torch.arange(parts.shape[2] * count, device="cpu").view(-1, count, 1)
            real = real < self.kinds.shape[2]
            every = ((parts == FULL) | ~real).all(3)
            some = (parts > 0).any(3)
        else:
            kinds = kinds.index_select(2, self.rows.block)
            every, some = kinds == FULL, kinds > 0
        every = every & ~cut_short
        found = torch.where(some, ASK, NOTHING)
        return torch.where(every, EVERYTHING, found).to(torch.int32)

    def _masks(self, part: Tensor) -> Tensor:
        """Who reads whom in some cells: part (n, 4) places -> (n, tile_q, cell) bool."""
        b, h, tiles, cells = part.T
        queries, _ = self.rows.positions(tiles)
        keys, real = self.columns.positions(cells)
        kinds = self.kinds[b[:, None], h[:, None], queries // self.q_block]
        kinds = kinds.gather(
            2, self.columns.block[cells][:, None, None].expand(-1, kinds.shape[1], 1)
        )
        found = kinds == FULL
        partial = kinds == PARTIAL
        asked = partial.flatten(1).any(1)
        if bool(asked.any()):
            at = (one.to(self.device)[asked] for one in (b, h, queries, keys))
            said = torch.zeros(*queries.shape, keys.shape[1], dtype=torch.bool, device="cpu")
            said[asked] = mask_of(self.mod, *at).cpu()
            found = found | (partial & said)
        return found & real[:, None]

    def _number(self, found: Tensor, seen: dict[bytes, int], masks: list[Tensor]) -> Tensor:
        """The number of each mask; new ones are added."""
        size = found[0].numel() if len(found) else 0
        some, every = found.flatten(1).any(1).tolist(), found.flatten(1).all(1).tolist()
        found = found.contiguous()
        content = ctypes.string_at(found.data_ptr(), found.numel())
        numbers = []
        for i in range(len(found)):
            if every[i] or not some[i]:
                numbers.append(EVERYTHING if every[i] else NOTHING)
                continue
            own = content[i * size : (i + 1) * size]
            if own not in seen:
                seen[own] = len(masks) + 2
                masks.append(found[i].clone())
            numbers.append(seen[own])
        return torch.tensor(numbers, dtype=torch.int32, device="cpu")
