"""The plan of a BlockMask: tiles of queries, the cells of keys that they read, what is masked."""

from __future__ import annotations

import ctypes
import functools
import itertools
import threading
import weakref
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from foveal.common.memo import outside
from foveal.ops.mods.cells import ASK, EVERYTHING, NOTHING, Cells, Stretch, cells_of, cut
from foveal.ops.mods.held import key_of_mod
from foveal.patterns.identity import key_of
from foveal.patterns.tiling import MAX_TILE

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


@dataclass(frozen=True, eq=False)
class Tiles:
    """Tiles of one shape: t tiles of `num_q` queries, which read c cells of keys each.

    number: (t,) which rows of `Cells` they are.
    read: (t, c) which columns; what pads a tile repeats another and is masked.
    kinds: (t, c) or (1, c) int32 as in `Cells`, or None where every pair is allowed.
    """

    number: Tensor
    num_q: int
    read: Tensor
    kinds: Tensor | None

    def take(self, here: Tensor | slice) -> Tiles:
        """Some of the tiles: a slice, or numbers (n,)."""
        shared = self.kinds is None or len(self.kinds) == 1 < len(self.number)
        kinds = self.kinds if shared else self.kinds[here]  # type: ignore[index]
        return Tiles(self.number[here], self.num_q, self.read[here], kinds)


@dataclass(frozen=True, eq=False)
class Part:
    """Sequences and heads that read the same: every one of `batch` with every one of `heads`.

    None means all of them.
    """

    batch: tuple[int, ...] | None
    heads: tuple[int, ...] | None
    tiles: tuple[Tiles, ...]


@dataclass(frozen=True, eq=False)
class Plan:
    """What a BlockMask says of so many queries and keys."""

    lengths: tuple[int, int]
    cells: Cells
    parts: tuple[Part, ...]

    def queries(self, tiles: Tiles) -> Tensor:
        """(t, q) positions."""
        first = self.cells.rows.first[tiles.number]
        return first[:, None] + torch.arange(tiles.num_q, device="cpu")

    def keys(self, tiles: Tiles) -> Tensor:
        """(t, k) positions."""
        return self.cells.columns.positions(tiles.read.flatten())[0].view(len(tiles.read), -1)

    def mask(self, tiles: Tiles, at: tuple[int, int] = (0, 0)) -> Tensor | None:
        """Who reads whom: (t or 1, q, k) bool, or None where every pair is allowed.

        at: a sequence and a head, for which to ask a mask_mod that has not been asked before.
        """
        kinds = tiles.kinds
        if kinds is None:
            return None
        found = _with_plain(self.cells.masks)[kinds.clamp(min=0).long(), : tiles.num_q]
        asked = kinds == ASK
        if bool(asked.any()):
            numbers = tiles.number[:, None].expand_as(tiles.read)
            places = torch.stack([numbers[asked], tiles.read[asked]], 1)
            own = torch.tensor(at, device="cpu").expand(len(places), 2)
            found[asked] = self.cells.answer(torch.cat([own, places], 1))[:, : tiles.num_q]
        return found.transpose(1, 2).flatten(2)


def _with_plain(masks: Tensor) -> Tensor:
    """With those of NOTHING and EVERYTHING before them."""
    plain = torch.zeros(2, *masks.shape[1:], dtype=torch.bool, device="cpu")
    plain[EVERYTHING] = True
    return torch.cat([plain, masks])


_LOCK = threading.Lock()
_PLANS: weakref.WeakKeyDictionary[BlockMask, dict[Hashable, tuple[Hashable, Plan]]]
_PLANS = weakref.WeakKeyDictionary()


def plan(
    block_mask: BlockMask, lengths: tuple[int, int], batch: int, heads: int, device: torch.device
) -> Plan:
    """The plan of a BlockMask, kept as long as that object lives and is unchanged."""
    own = (batch, heads, lengths, str(device))
    key = _key(block_mask)
    with _LOCK:
        found = _PLANS.get(block_mask, {}).get(own)
    if found is not None and found[0] == key:
        return found[1]
    with outside(), torch.no_grad():
        cells = cells_of(block_mask, lengths, batch, heads, device)
        made = Plan(lengths, cells, tuple(_parts(cells)))
    with _LOCK:
        _PLANS.setdefault(block_mask, {})[own] = key, made
    return made


def _key(block_mask: BlockMask) -> Hashable:
    lists = ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices")
    tensors = tuple([key_of(getattr(block_mask, name)) for name in lists])
    mod = block_mask.mask_mod
    return *tensors, block_mask.BLOCK_SIZE, id(mod), key_of_mod(mod)


@functools.lru_cache(maxsize=64)
def whole(lengths: tuple[int, int]) -> Plan:
    """The plan where every query reads every key."""
    with outside():
        rows, end = cut(lengths[0], lengths[0], MAX_TILE), torch.tensor([lengths[1]], device="cpu")
        columns = Stretch(end * 0, end, end * 0, lengths[1])
        kinds = torch.full((1, 1, len(rows.first), 1), EVERYTHING, dtype=torch.int32, device="cpu")
        none = torch.zeros(0, rows.size, 0, dtype=torch.bool, device="cpu")
        cells = Cells(rows, columns, kinds, none, lambda part: none)
        return Plan(lengths, cells, tuple(_parts(cells)))


def _parts(cells: Cells) -> Iterator[Part]:
    """Sequences and heads that read the same, and their tiles."""
    batch, heads = cells.kinds.shape[:2]
    number: dict[tuple[int, int], int] = {}
    seen: dict[bytes, int] = {}
    for at in itertools.product(range(batch), range(heads)):
        number[at] = seen.setdefault(_content(cells, at), len(seen))
    alike: dict[tuple[int, ...], list[int]] = {}
    for b in range(batch):
        alike.setdefault(tuple([number[b, h] for h in range(heads)]), []).append(b)
    made: dict[int, tuple[Tiles, ...]] = {}
    for numbers, members in alike.items():
        for own in dict.fromkeys(numbers):
            same = [h for h, one in enumerate(numbers) if one == own]
            if own not in made:
                made[own] = tuple(_tiles(cells, cells.kinds[members[0], same[0]]))
            yield Part(
                tuple(members) if len(members) < batch else None,
                tuple(same) if len(same) < heads else None,
                made[own],
            )


def _content(cells: Cells, at: tuple[int, int]) -> bytes:
    own = cells.kinds[at].contiguous()
    if bool((own == ASK).any()):  # what is asked later may differ where the cells do not
        return repr(at).encode()
    return ctypes.string_at(own.data_ptr(), own.numel() * own.element_size())


def _tiles(cells: Cells, kinds: Tensor) -> Iterator[Tiles]:
    """kinds: (tiles, cells) of one sequence and head."""
    count = (kinds != NOTHING).sum(1)
    masked = ((kinds != NOTHING) & (kinds != EVERYTHING)).any(1)
    width = torch.where(masked, _rounded(count), count).clamp(max=kinds.shape[1])
    shapes = torch.stack([cells.rows.end - cells.rows.first, width, masked.long()], 1)
    # cells that are read come first, in their order
    order = (kinds == NOTHING).to(torch.uint8).argsort(dim=1, stable=True)
    for shape in torch.unique(shapes, dim=0):
        num_q, num_cells, is_masked = shape.tolist()
        here = (shapes == shape).all(1).nonzero()[:, 0]
        if not num_cells:
            continue
        known = torch.arange(num_cells, device="cpu") < count[here, None]
        read = order[here, :num_cells]
        read = torch.where(known, read, read[:, :1])
        own = kinds[here].gather(1, read).masked_fill(~known, NOTHING)
        yield Tiles(here, num_q, read, own if is_masked else None)


def _rounded(count: Tensor) -> Tensor:
    """Numbers of cells, rounded up by an eighth at most, so that few shapes arise."""
    step = 2 ** (count.clamp(min=8).double().log2().floor() - 3)
    return (torch.ceil(count / step) * step).long()
