"""Where the clusters of a pooled pattern lie when its tokens are on many ranks."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveal.parallel.shares import Share
from foveal.patterns import Pattern
from foveal.patterns.gathered import Gathered
from foveal.patterns.needs import Stretches, listed, merged, read_by, runs_in


@dataclass(frozen=True)
class Local:
    """A call over pooled keys as one rank makes it.

    calls: the pattern of the own queries; of coarse ones, of those of each level.
    share: how this rank comes by the clusters up to `layout.within`.
    order: (keys of the calls,) where each stands: among own and foreign ones by rank, then the
        larger levels, then one that is empty.
    """

    layout: Layout
    calls: tuple[Gathered, ...]
    share: Share
    order: Tensor


@dataclass(frozen=True)
class Layout:
    """Clusters of all levels on ranks that hold consecutive tokens.

    plan: the joined pattern of the whole.
    tokens: first token of each rank, then the end.
    within: the highest level of which each cluster lies within one rank.
    """

    plan: Any
    tokens: tuple[int, ...]
    within: int

    def clusters(self, rank: int, level: int) -> tuple[int, int]:
        """Clusters [low, high) of a level that hold a token of a rank."""
        return self.tokens[rank] >> level, -(-self.tokens[rank + 1] // (1 << level))

    def sizes_at(self, level: int) -> list[int]:
        """Clusters of each rank at a level up to `within`."""
        spans = (self.clusters(rank, level) for rank in range(len(self.tokens) - 1))
        return [high - low for low, high in spans]

    @property
    def starts(self) -> list[list[int]]:
        """Where the clusters of each rank begin, level by level: each rank's stand together."""
        found, at = [], 0
        for rank in range(len(self.tokens) - 1):
            sizes = [b - a for a, b in (self.clusters(rank, i) for i in range(self.within + 1))]
            found.append([at + before for before in itertools.accumulate([0, *sizes[:-1]])])
            at += sum(sizes)
        return [*found, [at]]

    @property
    def borders(self) -> list[int]:
        """First place of each rank's clusters among those of all ranks, then the end."""
        return [one[0] for one in self.starts]

    def local(self, rank: int, share: Callable[[Stretches], Share]) -> Local:
        """The calls of one rank; `share` arranges how it gets what it needs."""
        parts, joined, keys = self._own_queries(rank), self.plan.num_joined_keys, self._keys(rank)
        calls = tuple(Gathered(self.plan, first, count, keys, joined) for first, count in parts)
        level, cluster = self._numbers(listed(keys))
        low = (level >= 0) & (level <= self.within)
        places = self._places(level[low], cluster[low])
        needed = places.unique()
        order = torch.full_like(level, -1)
        order[low] = torch.searchsorted(needed, places)
        order[level > self.within] = len(needed) + self._above(level, cluster)
        last = len(needed) + sum(
            self.plan.key_clusters(one) for one in range(self.within + 1, self.plan.levels)
        )
        order[order < 0] = last
        return Local(self, calls, share(runs_in(needed)), order)

    def needs(self, rank: int) -> Stretches:
        """Places of the clusters within ranks that a rank reads, its own among them."""
        level, cluster = self._numbers(listed(self._keys(rank)))
        low = (level >= 0) & (level <= self.within)
        return runs_in(self._places(level[low], cluster[low]))

    def gathered(self, rank: int) -> int:
        """Clusters of other ranks that every rank gathers, to pool the larger ones."""
        sizes = self.sizes_at(self.within) if self.within + 1 < self.plan.levels else [0]
        return sum(sizes) - sizes[min(rank, len(sizes) - 1)]

    def _keys(self, rank: int) -> Stretches:
        """Joined positions that a rank's queries read, in whole units."""
        joined = self.plan.num_joined_keys
        plans = [self.plan._part(*part, joined) for part in self._own_queries(rank)]
        return self._whole_units(merged(run for plan in plans for run in read_by(plan)))

    def _own_queries(self, rank: int) -> list[tuple[int, int]]:
        """(first, number) of a rank's queries, of coarse ones of every level."""
        if not self.plan.coarse:
            return [(self.tokens[rank], self.tokens[rank + 1] - self.tokens[rank])]
        found = []
        for level, start in enumerate(self.plan.query_offsets[:-1]):
            low, high = self.clusters(rank, level)
            found.append((start + low, high - low))
        return found

    def _whole_units(self, keys: Stretches) -> Stretches:
        """Runs of whole units, the one that is never read among them: tiles name units."""
        unit, last = self.plan.unit, self.plan.key_offsets[-1]
        runs = [(a // unit * unit, -(-b // unit) * unit) for a, b in keys]
        low, high = zip(*runs, (last, last + unit), strict=True)
        return merged([(torch.tensor(low, device="cpu"), torch.tensor(high, device="cpu"))])

    def _numbers(self, joined: Tensor) -> tuple[Tensor, Tensor]:
        """(level, cluster) at joined positions; level -1 where none stands."""
        offsets = torch.tensor(self.plan.key_offsets, device="cpu")
        level = torch.searchsorted(offsets, joined, right=True) - 1
        cluster = joined - offsets[level]
        counts = [self.plan.key_clusters(one) for one in range(self.plan.levels)]
        exists = cluster < torch.tensor([*counts, 0], device="cpu")[level]
        return torch.where(exists, level, -1), cluster

    def _places(self, level: Tensor, cluster: Tensor) -> Tensor:
        """Where clusters within ranks stand among those of all ranks."""
        tokens = torch.tensor(self.tokens, device="cpu")
        rank = torch.searchsorted(tokens[1:], cluster << level, right=True)
        starts = torch.tensor(self.starts[:-1], device="cpu")
        return starts[rank, level] + cluster - (tokens[rank] >> level)

    def _above(self, level: Tensor, cluster: Tensor) -> Tensor:
        """Where the larger clusters stand, level by level."""
        larger = level > self.within
        levels = range(self.within + 1, self.plan.levels)
        sizes = [self.plan.key_clusters(one) for one in levels]
        starts = torch.tensor([0, *itertools.accumulate(sizes)], device="cpu")
        return starts[level[larger] - self.within - 1] + cluster[larger]


def layout_of(pattern: Pattern, sizes: tuple[int, ...]) -> Layout:
    """Where the clusters lie on ranks that hold so many tokens each."""
    tokens = (0, *itertools.accumulate(sizes))
    plan = pattern.joined(tokens[-1], tokens[-1])
    within = 0
    while within + 1 < plan.levels and all(one % (2 << within) == 0 for one in tokens[1:-1]):
        within += 1
    return Layout(plan, tokens, within)
