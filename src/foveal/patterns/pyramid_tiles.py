"""The tile plan of a Pyramid, over keys (and coarse queries) of all levels laid side by side.

A unit is half a block of clusters for adjacent neighbours, a block for siblings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveal.patterns.cut import cut
from foveal.patterns.joined import Joined
from foveal.patterns.tiling import MAX_TILE, Grid, Runs, TileGroup, Tiling


def _unit(pyramid: Any) -> int:
    adjacent = pyramid.neighbors == "adjacent"
    return pyramid.block_size // 2 if adjacent else pyramid.block_size


def _pieces(begin: int, count: int, tile: int) -> list[tuple[int, int, int, int]]:
    """Runs of tiles that hold [begin, begin + count): (first tile, tiles, place in one, queries)
    each."""
    inside = begin % tile
    head = min(count, tile - inside) if inside else 0
    first, (whole, rest) = -(-begin // tile), divmod(count - head, tile)
    pieces = [(begin // tile, 1, inside, head), (first, whole, 0, tile)]
    pieces.append((first + whole, 1, 0, rest))
    return [one for one in pieces if one[1] and one[3]]


def _meet(pyramid: Any, level: Tensor | int, query: Tensor, key: Tensor) -> Tensor:
    """Whether clusters of one level meet there, and at no lower level."""
    unit, step = _unit(pyramid), int(pyramid.neighbors == "adjacent")
    a, c = query // unit, key // unit
    near = (a // 2 - c // 2).abs() <= step
    covered_below = (a - c).abs() <= step
    fine = torch.as_tensor(level, device=key.device) == 0
    meets = near & (fine | ~covered_below)
    return meets & torch.where(fine, key <= query, c < a) if pyramid.causal else meets


@dataclass(frozen=True)
class _PyramidTiles(Joined):
    """Who reads whom among the clusters of a Pyramid, whose file imports this one."""

    biased_by_table = True

    @property
    def block(self) -> int:
        return self.pattern.block_size

    @property
    def adjacent(self) -> bool:
        return self.pattern.neighbors == "adjacent"

    @property
    def unit(self) -> int:
        return _unit(self.pattern)

    @property
    def coarse(self) -> bool:
        return self.pattern.queries == "coarse"

    def meets(self, level: Tensor | int, query: Tensor, key: Tensor) -> Tensor:
        """Whether clusters of one level, which broadcast, meet there, and at no lower level."""
        return _meet(self.pattern, level, query, key)

    def bias_row(self, level: Tensor | int, query: Tensor, key: Tensor) -> Tensor:
        offset = key - query + 2 * self.block - 1
        return offset.clamp(0, self.pattern.bias_size - 1)

    # -- tiles ------------------------------------------------------------------------------

    @property
    def tile(self) -> int:
        """Queries in a tile: whole blocks, and whole pairs of siblings."""
        size = self.block if self.adjacent else 2 * self.block
        while size < MAX_TILE:
            size *= 2
        return size

    def _tiles(self, length: int) -> Tiling:
        if not self.coarse:
            return self._part(0, self.n_queries, length)
        groups: list[TileGroup] = []
        for level, start in enumerate(self.query_offsets[:-1]):
            groups += self._groups(start, 0, self.query_clusters(level), [(level, 0)])
        return Tiling(self.num_queries(length), length, tuple(groups))

    def _part(self, first: int, count: int, length: int) -> Tiling:
        if self.coarse:
            return cut(self.tiles(length), first, count)
        groups = self._groups(0, first, count, [(i, i) for i in range(self.levels)])
        return Tiling(count, length, tuple(groups))

    def _groups(
        self, start: int, begin: int, count: int, levels: list[tuple[int, int]]
    ) -> list[TileGroup]:
        """Tiles of `count` queries from `begin` on, which stand at `start`: the rest of a tile,
        whole ones, then the rest.

        levels: (level read, clusters of 2^shift queries are one of its clusters).
        """
        groups = []
        for first, tiles, inside, size in _pieces(begin, count, self.tile):
            numbers = torch.arange(first, first + tiles, device="cpu")
            parts = [self._level_tiles(numbers, inside, size, *pair) for pair in levels]
            units = torch.cat([unit for unit, _ in parts], 1)
            mask = torch.cat([m for _, m in parts], 1)
            used = (units != self.key_offsets[-1] // self.unit).any(0)
            units, mask = units[:, used], mask[:, used.repeat_interleave(self.unit)]
            if not units.shape[1]:
                continue
            place = start + first * self.tile + inside - begin
            queries = Grid(place, ((tiles, self.tile),), ((size, 1),))
            groups.append(
                TileGroup(
                    queries, (Runs(units, self.unit),), None if bool(mask.all()) else mask[None]
                )
            )
        return groups

    def _level_tiles(
        self, tiles: Tensor, begin: int, size: int, level: int, shift: int
    ) -> tuple[Tensor, Tensor]:
        """Joined units (tiles, units) of one level, and the mask (size, units * unit) of the
        queries from place `begin` of their tile on."""
        span = self.unit << shift  # queries of a unit
        if span < self.tile:
            inside = self.tile // span
            low, high = self._reach_inside(level, inside)
            relative = torch.arange(low, high, device="cpu")
            units = tiles[:, None] * inside + relative
            clusters = (
                relative[:, None] * self.unit + torch.arange(self.unit, device="cpu")
            ).flatten()
            own = torch.arange(begin, begin + size, device="cpu")[:, None]
            mask = self.meets(level, own >> shift, clusters[None])
        else:
            units = self._reach_outside(tiles * self.tile // span)
            mask = torch.ones(size, units.shape[1] * self.unit, dtype=torch.bool, device="cpu")
        exists = (units >= 0) & (units < self.key_units(level))
        first, none = (self.key_offsets[i] // self.unit for i in (level, -1))
        return torch.where(exists, units + first, none), mask

    def _reach_inside(self, level: int, inside: int) -> tuple[int, int]:
        """Units [low, high) read by a tile of `inside` units, counted from its first."""
        if not self.adjacent:
            return 0, inside
        if not self.pattern.causal:
            return -2, inside + 2
        return -2, inside if level == 0 else inside - 2

    def _reach_outside(self, own: Tensor) -> Tensor:
        """Units read by tiles that lie within the units `own`: (tiles, units), -1 = none."""
        odd = own % 2 == 1
        none = torch.full_like(own, -1)
        if not self.adjacent:
            sibling = torch.where(odd, own - 1, none if self.pattern.causal else own + 1)
            return sibling[:, None]
        if self.pattern.causal:
            return torch.stack([torch.where(odd, own - 3, none), own - 2], 1)
        two = [torch.where(odd, own - 3, own - 2), torch.where(odd, own - 2, own + 2)]
        return torch.stack([*two, torch.where(odd, own + 2, own + 3)], 1)

    # -- counting ---------------------------------------------------------------------------

    def num_pairs(self, length: int) -> int:
        """Pairs of (query or its cluster, key cluster) that meet."""
        total = 0
        for level in range(self.levels):
            queries = self.query_clusters(level) if self.coarse else self.n_queries
            span = self.unit if self.coarse else self.unit << level
            own = torch.arange(-(-queries // span), device="cpu")
            weight = (queries - own * span).clamp(max=span)
            left = self.key_clusters(level)
            for step in range(-3, 4):
                other = own + step
                keys = (left - other * self.unit).clamp(0, self.unit) * (other >= 0)
                meets = self._meets_units(level, own, other)
                total += int((weight * keys * meets).sum())
        return total - self._future() if self.pattern.causal else total

    def _meets_units(self, level: int, own: Tensor, other: Tensor) -> Tensor:
        meets = self.meets(level, own * self.unit, other * self.unit)
        if level == 0 and self.pattern.causal:
            near = (own // 2 - other // 2).abs() <= int(self.adjacent)
            return near & (other <= own)
        return meets

    def _future(self) -> int:
        """Pairs of level 0 in a query's own unit whose key comes later."""
        whole, rest = divmod(min(self.n_queries, self.n_keys), self.unit)
        return (whole * self.unit * (self.unit - 1) + rest * (rest - 1)) // 2
