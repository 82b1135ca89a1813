"""Fixed attention of the Sparse Transformer: own block, and summary tokens of the other blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from foveal.patterns.base import Overlap, Pattern
from foveal.patterns.cut import cut
from foveal.patterns.needs import Stretches, together
from foveal.patterns.tiling import MAX_TILE, Grid, Places, TileGroup, Tiling


@dataclass(frozen=True)
class Fixed(Pattern):
    """Each token reads its own block and the last `summary` tokens of every other block.

    Child et al., "Generating Long Sequences with Sparse Transformers" (2019), section 4.3, both
    sets in one head; the paper takes `stride` 128 or 256 and `summary` 8, 16 or 32.

    Args:
        stride: tokens in a block.
        summary: tokens at the end of each block that later (if not causal: all) tokens read.
        causal: read the past only.

    Raises:
        ValueError: stride or summary is not a positive int, or summary exceeds stride.

    Differs from the paper in: its index set {l - c, ..., l} is read as the last c columns.
    """

    stride: int
    summary: int
    causal: bool = True

    always_reads = True

    def __post_init__(self) -> None:
        self._check_ints(1, "stride", "summary")
        self._check_bools("causal")
        if self.summary > self.stride:
            raise ValueError(
                f"summary must be at most stride={self.stride}, got summary={self.summary}."
            )

    @property
    def _plain(self) -> int:
        """Tokens of a block that are not its summary."""
        return self.stride - self.summary

    def allows(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        own = q_idx // self.stride == k_idx // self.stride
        reach = own | (k_idx % self.stride >= self._plain)
        return reach & (k_idx <= q_idx) if self.causal else reach

    def overlap(self, q_first: Tensor, q_last: Tensor, k_first: Tensor, k_last: Tensor) -> Overlap:
        size = self.stride
        q_low, q_high, k_low, k_high = (i // size for i in (q_first, q_last, k_first, k_last))
        some = (q_low <= k_high) & (k_low <= q_high) | (k_last >= k_low * size + self._plain)
        one_block = k_low == k_high
        summaries = one_block & (k_first % size >= self._plain)
        every = (one_block & (q_low == k_low) & (q_high == k_low)) | summaries
        every = every | (some & (self._plain == 0))
        if self.causal:
            return some & (k_first <= q_last), every & (k_last <= q_first)
        return some, every

    # -- decoding -----------------------------------------------------------------------------

    def reads(self, position: int) -> Tensor:
        self._require_causal("reads")
        return self._visible(position // self.stride, position + 1)

    def keeps(self, position: int) -> Tensor:
        self._require_causal("keeps")
        return self._visible((position + 1) // self.stride, position + 1)

    def _visible(self, block: int, stop: int) -> Tensor:
        """Summaries of the blocks before `block`, and what that block has below `stop`."""
        starts = torch.arange(block, device="cpu")[:, None] * self.stride
        summaries = (starts + torch.arange(self._plain, self.stride, device="cpu")).reshape(-1)
        return torch.cat([summaries, torch.arange(block * self.stride, stop, device="cpu")])

    def needs(self, first: int, last: int, length: int) -> Stretches:
        if first >= last:
            return ()
        size, low = self.stride, first // self.stride * self.stride
        high = last if self.causal else min(length, -(-last // size) * size)
        starts = range(self._plain, low if self.causal else length, size)
        summaries = [(start, min(start + self.summary, length)) for start in starts]
        return together([((low, high),), tuple(summaries)])

    def num_pairs(self, length: int) -> int:
        whole, rest = divmod(length, self.stride)
        summaries = max(0, rest - self._plain)
        if self.causal:
            own = whole * (self.stride * (self.stride + 1) // 2) + rest * (rest + 1) // 2
            earlier = self.stride * (whole * (whole - 1) // 2) + rest * whole
            return own + earlier * self.summary
        own = whole * self._plain * self.stride + rest * (rest - summaries)
        return own + length * (whole * self.summary + summaries)

    # -- plan ---------------------------------------------------------------------------------

    def _tiles(self, length: int) -> Tiling:
        groups = self._causal_groups(length) if self.causal else self._free_groups(length)
        return Tiling(length, length, tuple(groups))

    def _part(self, first: int, count: int, length: int) -> Tiling:
        if not self.causal or not count:
            return super()._part(first, count, length)
        blocks = first // self.stride, -(-(first + count) // self.stride)
        groups = tuple(self._causal_groups(length, *blocks))
        return cut(Tiling(length, length, groups), first, count)

    def _pieces(self, size: int) -> list[tuple[int, int]]:
        """Cut `size` tokens into nearly equal stretches of at most MAX_TILE: (first, last + 1)."""
        step = -(-size // -(-size // MAX_TILE))
        return [(first, min(first + step, size)) for first in range(0, size, step)]

    def _causal_groups(
        self, length: int, low: int = 0, high: int | None = None
    ) -> Iterator[TileGroup]:
        """Own blocks first, then the summaries before them, which no mask has to touch.

        low, high: the blocks that are wanted, in whole tiles.
        """
        size, blocks = self.stride, -(-length // self.stride)
        blocks = blocks if high is None else min(high, blocks)
        together = max(1, MAX_TILE // size)
        masks: dict[tuple[int, int], Tensor] = {}
        for block in range(low // together * together, blocks, together):
            start = block * size
            for first, stop in self._pieces(min(together * size, length - start)):
                if (first, stop) not in masks:
                    masks[first, stop] = self._causal_mask(first, stop, blocks)
                keys: list[Places] = [_run(start, stop)]
                if block:
                    keys.append(
                        Grid(self._plain, ((1, 0),) * 2, ((block, size), (self.summary, 1)))
                    )
                used = stop + block * self.summary
                yield TileGroup(
                    _run(start + first, stop - first),
                    tuple(keys),
                    masks[first, stop][:, :, :used],
                )

    def _causal_mask(self, first: int, stop: int, blocks: int) -> Tensor:
        """One mask for every block: those with fewer summaries before them take a slice."""
        own = self.allows(
            torch.arange(first, stop, device="cpu")[:, None], torch.arange(stop, device="cpu")
        )
        return torch.nn.functional.pad(own, (0, blocks * self.summary), value=True)[None]

    def _free_groups(self, length: int) -> Iterator[TileGroup]:
        """Own tokens that are no summary, then all summaries: equal tiles, one group or a few."""
        size, (whole, rest) = self.stride, divmod(length, self.stride)
        together = min(max(1, MAX_TILE // size), max(whole, 1))
        tiles, odd = divmod(whole, together)
        for count, blocks, start in ((tiles, together, 0), (1, odd, tiles * together * size)):
            for first, stop in self._pieces(blocks * size) if count and blocks else ():
                own = Grid(
                    start, ((count, blocks * size), (1, 0)), ((blocks, size), (self._plain, 1))
                )
                yield self._free_group(start, first, stop, (count, blocks * size), own, length)
        for first, stop in self._pieces(rest) if rest else ():
            own = Grid(whole * size, ((1, 0),) * 2, ((1, 0), (min(rest, self._plain), 1)))
            yield self._free_group(whole * size, first, stop, (1, 0), own, length)

    def _free_group(
        self, start: int, first: int, stop: int, tiles: tuple[int, int], own: Grid, length: int
    ) -> TileGroup:
        queries = Grid(start + first, (tiles,), ((stop - first, 1),))
        size, (whole, rest) = self.stride, divmod(length, self.stride)
        shared = ((tiles[0], 0), (1, 0))
        summaries = Grid(self._plain, shared, ((whole, size), (self.summary, 1)))
        unfinished = max(0, rest - self._plain)
        last = Grid(whole * size + self._plain, shared, ((1, 0), (unfinished, 1)))
        keys = tuple(part for part in (own, summaries, last) if part.num_items)
        first_tile = torch.cat([part.first_tile() for part in keys])
        mask = self.allows(queries.first_tile()[:, None], first_tile)
        return TileGroup(queries, keys, None if bool(mask.all()) else mask[None])


def _run(start: int, count: int) -> Grid:
    """One tile of consecutive tokens."""
    return Grid(start, ((1, 0),), ((count, 1),))
