"""Blocks that are denoised, each after the clean text before it (block diffusion)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveal.patterns.base import Overlap, Pattern
from foveal.patterns.tiling import (
    MAX_TILE,
    Grid,
    TileGroup,
    Tiling,
)


@dataclass(frozen=True)
class BlockDiffusion(Pattern):
    """A text twice in one row, noised and then clean: block i is denoised after the clean ones.

    Arriola et al., "Block Diffusion: Interpolating Between Autoregressive and Diffusion Language
    Models" (2025), section 3.1: the mask that trains all blocks in one pass. A noised block reads
    itself and the clean blocks before it; a clean block reads itself and the clean blocks before
    it. Within a block tokens read each other both ways.

    Args:
        block_size: tokens of a block; the last one may be shorter.
        num_tokens: of the text; the row has twice as many, the noised ones in front.

    Raises:
        ValueError: block_size or num_tokens is no positive int; in use, a row of another length.
    """

    block_size: int
    num_tokens: int

    always_reads = True

    def __post_init__(self) -> None:
        self._check_ints(1, "block_size", "num_tokens")

    @property
    def natural_length(self) -> int:
        return 2 * self.num_tokens

    def check_length(self, length: int) -> None:
        super().check_length(length)
        if length != 2 * self.num_tokens:
            raise ValueError(
                f"length must be {2 * self.num_tokens}, the noised and the clean text of {self}, "
                f"got {length=}."
            )

    def _places(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Whether a position is in the clean text, and the number of its block."""
        clean = index >= self.num_tokens
        return clean, torch.where(clean, index - self.num_tokens, index) // self.block_size

    def allows(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        (q_clean, query), (k_clean, key) = self._places(q_idx), self._places(k_idx)
        earlier = torch.where(q_clean, key <= query, key < query)
        return torch.where(k_clean, earlier, ~q_clean & (key == query))

    def overlap(self, q_first: Tensor, q_last: Tensor, k_first: Tensor, k_last: Tensor) -> Overlap:
        (q_from, q0), (q_to, q1) = self._places(q_first), self._places(q_last)
        (k_from, k0), (k_to, k1) = self._places(k_first), self._places(k_last)
        inside = (q_from == q_to) & (k_from == k_to)
        some_clean = torch.where(q_from, k0 <= q1, k0 < q1)
        all_clean = torch.where(q_from, k1 <= q0, k1 < q0)
        some = torch.where(k_from, some_clean, ~q_from & (q0 <= k1) & (k0 <= q1))
        every = torch.where(k_from, all_clean, ~q_from & (q0 == q1) & (k0 == k1) & (q0 == k0))
        return some | ~inside, every & inside

    def _part(self, first: int, count: int, length: int) -> Tiling:
        groups = []
        for start in (0, self.num_tokens):  # of the noised text, of the clean one
            stop = start + self.num_tokens
            step = self._tile()
            for begin in range(start, stop, step):
                queries = max(begin, first), min(begin + step, stop, first + count)
                if queries[0] < queries[1]:
                    groups.append(self._group(*queries, start))
        return Tiling(count, length, tuple(groups)).shift(-first, 0, count, length)

    def _tile(self) -> int:
        """Queries in a tile: whole blocks, where they are small."""
        return max(1, MAX_TILE // self.block_size) * self.block_size

    def _group(self, begin: int, stop: int, start: int) -> TileGroup:
        """Queries [begin, stop), of one text that begins at `start`, and what they read."""
        size, total = self.block_size, self.num_tokens
        low = (begin - start) // size * size
        high = min(total, -(-(stop - start) // size) * size)
        stretches = [(total, total + high)]
        if start == 0:
            stretches = [(low, high), (total, total + (stop - 1) // size * size)]
        one = ((1, 0),)
        keys = [Grid(a, one, ((b - a, 1),)) for a, b in stretches if a < b]
        queries = Grid(begin, one, ((stop - begin, 1),))
        found = torch.cat([part.first_tile() for part in keys])
        mask = self.allows(queries.first_tile()[:, None], found[None])
        return TileGroup(queries, tuple(keys), None if bool(mask.all()) else mask[None])

    def num_pairs(self, length: int) -> int:
        whole, rest = divmod(self.num_tokens, self.block_size)
        squares = self.block_size**2 * (whole * (whole + 1) // 2)
        return 2 * (squares + rest * self.num_tokens)
