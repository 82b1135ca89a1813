"""The tile plan of a Pyramid, over keys (and coarse queries) of all levels laid side by side.

Legend: level l has clusters of 2^l tokens. A *unit* is the run of clusters that is read or left
out as a whole: half a block for adjacent neighbours, a block for siblings. The keys of level l
form a section of whole units; after the last section stands one unit that is never read, to which
tiles refer where the sequence has no keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveal.common.memo import remember
from foveal.patterns.base import Pattern
from foveal.patterns.tiling import MAX_TILE, Grid, Runs, TileGroup, Tiling


def _unit(pyramid: Any) -> int:
    adjacent = pyramid.neighbors == "adjacent"
    return pyramid.block_size // 2 if adjacent else pyramid.block_size


def _meet(pyramid: Any, level: Tensor | int, query: Tensor, key: Tensor) -> Tensor:
    """Whether clusters of one level meet there, and at no lower level."""
    unit, step = _unit(pyramid), int(pyramid.neighbors == "adjacent")
    a, c = query // unit, key // unit
    near = (a // 2 - c // 2).abs() <= step
    covered_below = (a - c).abs() <= step
    fine = torch.as_tensor(level, device=key.device) == 0
    meets = near & (fine | ~covered_below)
    return meets & torch.where(fine, key <= query, c < a) if pyramid.causal else meets


@dataclass(frozen=True, eq=False)
class Clusters:
    """`_PyramidTiles.allows` with its tables: the level and cluster at each joined position.

    key_level, key_cluster: (joined keys,) int32; a key without tokens stands far from all others.
    query_level, query_cluster: (joined queries,) int32; None for fine queries, which have a
        cluster at every level.
    """

    pyramid: Any
    key_level: Tensor
    key_cluster: Tensor
    query_level: Tensor | None
    query_cluster: Tensor | None

    @property
    def exists(self) -> Tensor:
        """(joined keys,) bool: keys that hold at least one token."""
        return self.key_cluster >= 0

    def __call__(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        level, key = self.key_level[k_idx], self.key_cluster[k_idx]
        meets = _meet(self.pyramid, level, self._query(q_idx, level), key)
        return meets if self.query_level is None else meets & (self.query_level[q_idx] == level)

    def bias_place(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        """Row of the table for each pair, of joined positions that broadcast."""
        level, key = self.key_level[k_idx], self.key_cluster[k_idx]
        offset = key - self._query(q_idx, level) + 2 * self.pyramid.block_size - 1
        return offset.clamp(0, self.pyramid.bias_size - 1)

    def _query(self, q_idx: Tensor, level: Tensor) -> Tensor:
        return q_idx >> level if self.query_cluster is None else self.query_cluster[q_idx]


@remember(entries=16)
def _clusters(tiles: _PyramidTiles, device: str) -> Clusters:
    def number(offsets: list[int]) -> tuple[Tensor, Tensor]:
        sizes = torch.tensor(offsets, device="cpu").diff()
        level = torch.arange(len(sizes), device="cpu").repeat_interleave(sizes)
        return level, torch.arange(offsets[-1], device="cpu") - torch.tensor(
            offsets, device="cpu"
        )[level]

    level, cluster = number(tiles.key_offsets)
    counts = torch.tensor([tiles.key_clusters(one) for one in range(tiles.levels)], device="cpu")
    far = torch.full((), -4 * tiles.unit, device="cpu")
    cluster = torch.where(cluster < counts[level], cluster, far)
    level = torch.nn.functional.pad(level, (0, tiles.unit))
    cluster = torch.nn.functional.pad(cluster, (0, tiles.unit), value=int(far))
    own_level, own_cluster = number(tiles.query_offsets)

    def put(table: Tensor) -> Tensor:
        return table.to(device, torch.int32)

    return Clusters(
        tiles.pyramid,
        put(level),
        put(cluster),
        put(own_level) if tiles.coarse else None,
        put(own_cluster) if tiles.coarse else None,
    )


@dataclass(frozen=True)
class _PyramidTiles(Pattern):
    """Who reads whom among the clusters of all levels; positions count in the joined sections.

    Args:
        pyramid: the Pyramid in fine tokens, whose file imports this one.
        n_queries, n_keys: fine tokens.
    """

    pyramid: Any
    n_queries: int
    n_keys: int

    biased_by_table = True

    @property
    def is_causal(self) -> bool:
        return False  # joined positions are not in the order of time

    # -- layout -----------------------------------------------------------------------------

    @property
    def block(self) -> int:
        return self.pyramid.block_size

    @property
    def adjacent(self) -> bool:
        return self.pyramid.neighbors == "adjacent"

    @property
    def unit(self) -> int:
        """Clusters in a unit."""
        return _unit(self.pyramid)

    @property
    def levels(self) -> int:
        return self.pyramid.num_levels(max(self.n_queries, self.n_keys))

    @property
    def coarse(self) -> bool:
        return self.pyramid.queries == "coarse"

    def key_clusters(self, level: int) -> int:
        """Clusters of keys that hold at least one token."""
        return -(-self.n_keys // (1 << level))

    def query_clusters(self, level: int) -> int:
        return -(-self.n_queries // (1 << level))

    def key_units(self, level: int) -> int:
        return -(-self.key_clusters(level) // self.unit)

    @property
    def key_offsets(self) -> list[int]:
        """First joined position of each level's keys, then of the unit that is never read."""
        starts = [0]
        for level in range(self.levels):
            starts.append(starts[-1] + self.key_units(level) * self.unit)
        return starts

    @property
    def query_offsets(self) -> list[int]:
        """First joined position of each level's queries, then the end."""
        if not self.coarse:
            return [0, self.n_queries]
        starts = [0]
        for level in range(self.levels):
            starts.append(starts[-1] + self.query_clusters(level))
        return starts

    @property
    def num_joined_keys(self) -> int:
        return self.key_offsets[-1] + self.unit

    def num_queries(self, n_keys: int) -> int:
        return self.query_offsets[-1]

    # -- definition -------------------------------------------------------------------------

    def rule(self, device: torch.device | str | None = None) -> Clusters:
        return _clusters(self, str(device or "cpu"))

    def allows(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        return self.rule(k_idx.device)(q_idx, k_idx)

    def meets(self, level: Tensor | int, query: Tensor, key: Tensor) -> Tensor:
        """Whether clusters of one level meet there, and at no lower level."""
        return _meet(self.pyramid, level, query, key)

    def bias_place(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        """Row of the table of relative positions for each pair (broadcast shape)."""
        return self.rule(k_idx.device).bias_place(q_idx, k_idx)

    # -- tiles ------------------------------------------------------------------------------

    @property
    def tile(self) -> int:
        """Queries in a tile: whole blocks, and whole pairs of siblings."""
        size = self.block if self.adjacent else 2 * self.block
        while size < MAX_TILE:
            size *= 2
        return size

    def _tiles(self, length: int) -> Tiling:
        groups: list[TileGroup] = []
        if self.coarse:
            for level, start in enumerate(self.query_offsets[:-1]):
                groups += self._groups(start, self.query_clusters(level), [(level, 0)])
        else:
            groups += self._groups(0, self.n_queries, [(i, i) for i in range(self.levels)])
        return Tiling(self.num_queries(length), length, tuple(groups))

    def _groups(self, start: int, count: int, levels: list[tuple[int, int]]) -> list[TileGroup]:
        """Tiles of `count` queries: whole ones, then the rest.

        levels: (level read, clusters of 2^shift queries are one of its clusters).
        """
        groups = []
        whole, rest = divmod(count, self.tile)
        for first, tiles, size in ((0, whole, self.tile), (whole, 1, rest)):
            if not tiles or not size:
                continue
            numbers = torch.arange(first, first + tiles, device="cpu")
            parts = [self._level_tiles(numbers, size, *pair) for pair in levels]
            units = torch.cat([unit for unit, _ in parts], 1)
            mask = torch.cat([m for _, m in parts], 1)
            used = (units != self.key_offsets[-1] // self.unit).any(0)
            units, mask = units[:, used], mask[:, used.repeat_interleave(self.unit)]
            if not units.shape[1]:
                continue
            queries = Grid(start + first * self.tile, ((tiles, self.tile),), ((size, 1),))
            groups.append(
                TileGroup(
                    queries, (Runs(units, self.unit),), None if bool(mask.all()) else mask[None]
                )
            )
        return groups

    def _level_tiles(
        self, tiles: Tensor, size: int, level: int, shift: int
    ) -> tuple[Tensor, Tensor]:
        """Joined units (tiles, units) of one level, and the mask (size, units * unit)."""
        span = self.unit << shift  # queries of a unit
        if span < self.tile:
            inside = self.tile // span
            low, high = self._reach_inside(level, inside)
            relative = torch.arange(low, high, device="cpu")
            units = tiles[:, None] * inside + relative
            clusters = (
                relative[:, None] * self.unit + torch.arange(self.unit, device="cpu")
            ).flatten()
            mask = self.meets(
                level, torch.arange(size, device="cpu")[:, None] >> shift, clusters[None]
            )
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
        if not self.pyramid.causal:
            return -2, inside + 2
        return -2, inside if level == 0 else inside - 2

    def _reach_outside(self, own: Tensor) -> Tensor:
        """Units read by tiles that lie within the units `own`: (tiles, units), -1 = none."""
        odd = own % 2 == 1
        none = torch.full_like(own, -1)
        if not self.adjacent:
            sibling = torch.where(odd, own - 1, none if self.pyramid.causal else own + 1)
            return sibling[:, None]
        if self.pyramid.causal:
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
        return total - self._future() if self.pyramid.causal else total

    def _meets_units(self, level: int, own: Tensor, other: Tensor) -> Tensor:
        meets = self.meets(level, own * self.unit, other * self.unit)
        if level == 0 and self.pyramid.causal:
            near = (own // 2 - other // 2).abs() <= int(self.adjacent)
            return near & (other <= own)
        return meets

    def _future(self) -> int:
        """Pairs of level 0 in a query's own unit whose key comes later."""
        whole, rest = divmod(min(self.n_queries, self.n_keys), self.unit)
        return (whole * self.unit * (self.unit - 1) + rest * (rest - 1)) // 2
