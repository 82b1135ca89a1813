"""Where the tokens of tiles stand: on regular grids, in runs, or as they are listed."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """Token positions on a regular grid: tile `t`, item `i` is `start + t . tile_strides + i . item_strides`.

    tiles: (count, stride) of each tile dimension, in tokens; a stride of 0 means that all tiles
        share their items.
    items: (count, stride) of each item dimension; as many dimensions as `tiles`, each along the tile dimension of the same place.
    """  # noqa: E501

    start: int
    tiles: tuple[tuple[int, int], ...]
    items: tuple[tuple[int, int], ...]

    @property
    def num_tiles(self) -> int:
        return math.prod(count for count, _ in self.tiles)

    @property
    def num_items(self) -> int:
        return math.prod(count for count, _ in self.items)

    def shift(self, offset: int) -> Grid:
        return replace(self, start=self.start + offset)

    def index(self) -> Tensor:
        """Positions as a tensor: (num_tiles, num_items) int64."""
        return self.starts()[:, None] + offsets(self.items)

    def first_tile(self) -> Tensor:
        """Positions of the first tile alone: (num_items,) int64."""
        return offsets(self.items) + self.start

    def starts(self) -> Tensor:
        """Position of the first item of each tile: (num_tiles,) int64."""
        if self.num_tiles == 1:
            return torch.tensor([self.start], device="cpu")
        return _spaced(self.tiles) + self.start


def offsets(dims: tuple[tuple[int, int], ...]) -> Tensor:
    """Positions of the items of a grid, from its first one on: (num_items,) int64."""
    if len(dims) == 1 and dims[0][1] == 1:
        return _first_numbers(max(1024, 1 << dims[0][0].bit_length()))[: dims[0][0]]
    return _spaced(dims)


@functools.lru_cache(maxsize=64)
def _first_numbers(count: int) -> Tensor:
    return torch.arange(count, device="cpu")


def _spaced(dims: tuple[tuple[int, int], ...]) -> Tensor:
    """Sums of one multiple of each stride: (product of the counts,) int64."""
    total = None
    for count, stride in dims:
        if count == 1:
            continue
        steps = torch.arange(count, device="cpu") * stride
        total = steps if total is None else (total[:, None] + steps).flatten()
    return torch.zeros(1, dtype=torch.int64, device="cpu") if total is None else total


@dataclass(frozen=True, eq=False)
class Lookup:
    """Token positions without a regular shape: positions (tiles, items) int64."""

    positions: Tensor

    @property
    def num_tiles(self) -> int:
        return self.positions.shape[0]

    @property
    def num_items(self) -> int:
        return self.positions.shape[1]

    def shift(self, offset: int) -> Lookup:
        return Lookup(self.positions + offset)

    def index(self) -> Tensor:
        return self.positions

    def flat(self, device: torch.device) -> Tensor:
        """All positions in one row on a device: (tiles * items,)."""
        return self.positions.reshape(-1).to(device)


@dataclass(frozen=True, eq=False)
class Runs:
    """Runs of consecutive tokens: tile `t` holds the runs `units[t]`, each of `size` tokens.

    units: (tiles, runs) int64; run `u` begins at token `u * size`.
    """

    units: Tensor
    size: int

    @property
    def num_tiles(self) -> int:
        return self.units.shape[0]

    @property
    def num_items(self) -> int:
        return self.units.shape[1] * self.size

    def shift(self, offset: int) -> Lookup:
        return Lookup(self.index() + offset)

    def index(self) -> Tensor:
        return (
            self.units[:, :, None] * self.size + torch.arange(self.size, device="cpu")
        ).flatten(1)

    def flat(self, device: torch.device) -> Tensor:
        """All runs in one row on a device: (tiles * runs,)."""
        return self.units.reshape(-1).to(device)


@dataclass(frozen=True, eq=False)
class Scattered:
    """Equal grids of tokens at any places: tile `t`, item `i` is `starts[t] + i . items`.

    starts: (tiles,) int64.
    items: (count, stride) of each item dimension, in tokens.
    """

    starts: Tensor
    items: tuple[tuple[int, int], ...]

    @property
    def num_tiles(self) -> int:
        return len(self.starts)

    @property
    def num_items(self) -> int:
        return math.prod(count for count, _ in self.items)

    def shift(self, offset: int) -> Scattered:
        return Scattered(self.starts + offset, self.items)

    def index(self) -> Tensor:
        return self.starts[:, None] + offsets(self.items)

    def grids(self) -> Iterator[Grid]:
        """The tiles one by one."""
        one = tuple((1, 0) for _ in self.items)
        for start in self.starts.tolist():
            yield Grid(start, one, self.items)


Places = Grid | Lookup | Runs | Scattered


def edges(place: Places) -> tuple[Tensor, Tensor]:
    """The least and the largest position of each tile: (num_tiles,) int64 each."""
    if isinstance(place, Grid | Scattered) and all(step >= 0 for _, step in place.items):
        starts = place.starts() if isinstance(place, Grid) else place.starts
        return starts, starts + sum((n - 1) * step for n, step in place.items)
    found = place.index()
    return found.amin(1), found.amax(1)
