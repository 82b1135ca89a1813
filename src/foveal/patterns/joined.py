"""Keys of several levels side by side: how a pattern that pools its keys becomes an ordinary one.

Level l has clusters of 2^l tokens. A *unit* is a run of clusters that is read or left out as a
whole. The keys of a level form a section of whole units; after the last section stands one unit
that is never read, to which tiles refer where the sequence has no keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveal.common.memo import remember
from foveal.patterns.base import Pattern


@dataclass(frozen=True, eq=False)
class Clusters:
    """`Joined.allows` with its tables: the level and cluster at each joined position.

    key_level, key_cluster: (joined keys,) int32; a key without tokens stands far from all others.
    query_level, query_cluster: (joined queries,) int32; None for fine queries, which have a
        cluster at every level.
    """

    plan: Joined
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
        meets = self.plan.meets(level, self._query(q_idx, level), key)
        return meets if self.query_level is None else meets & (self.query_level[q_idx] == level)

    def bias_place(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        """Row of the table for each pair, of joined positions that broadcast."""
        level, key = self.key_level[k_idx], self.key_cluster[k_idx]
        return self.plan.bias_row(level, self._query(q_idx, level), key)

    def _query(self, q_idx: Tensor, level: Tensor) -> Tensor:
        if self.query_cluster is None:
            return self.plan.cluster_of(q_idx, level)
        return self.query_cluster[q_idx]


@remember(entries=16)
def _clusters(plan: Joined, device: str) -> Clusters:
    def number(offsets: list[int]) -> tuple[Tensor, Tensor]:
        sizes = torch.tensor(offsets, device="cpu").diff()
        level = torch.arange(len(sizes), device="cpu").repeat_interleave(sizes)
        return level, torch.arange(offsets[-1], device="cpu") - torch.tensor(
            offsets, device="cpu"
        )[level]

    level, cluster = number(plan.key_offsets)
    counts = torch.tensor([plan.key_clusters(one) for one in range(plan.levels)], device="cpu")
    far = torch.full((), -4 * plan.unit, device="cpu")
    cluster = torch.where(cluster < counts[level], cluster, far)
    level = torch.nn.functional.pad(level, (0, plan.unit))
    cluster = torch.nn.functional.pad(cluster, (0, plan.unit), value=int(far))
    own_level, own_cluster = number(plan.query_offsets)

    def put(table: Tensor) -> Tensor:
        return table.to(device, torch.int32)

    return Clusters(
        plan,
        put(level),
        put(cluster),
        put(own_level) if plan.coarse else None,
        put(own_cluster) if plan.coarse else None,
    )


@dataclass(frozen=True)
class Joined(Pattern, abstract=True):
    """Who reads whom among the clusters of all levels; positions count in the joined sections.

    Args:
        pattern: the pattern in fine tokens.
        n_queries, n_keys: fine tokens.
    """

    pattern: Any
    n_queries: int
    n_keys: int

    @property
    def is_causal(self) -> bool:
        return False  # joined positions are not in the order of time

    # -- what a kind of pooling says ----------------------------------------------------------

    @property
    def unit(self) -> int:
        """Clusters in a unit."""
        return 1

    @property
    def coarse(self) -> bool:
        """Whether the tokens of a cluster share a query at its level."""
        return False

    def cluster_of(self, q_idx: Tensor, level: Tensor | int) -> Tensor:
        """How `meets` counts fine queries (any shape) at a level: in clusters."""
        return q_idx >> level

    def meets(self, level: Tensor | int, query: Tensor, key: Tensor) -> Tensor:
        """Whether a query and a cluster of keys of one level, which broadcast, meet there."""
        raise NotImplementedError

    def bias_row(self, level: Tensor | int, query: Tensor, key: Tensor) -> Tensor:
        """Row of a table of biases for clusters of one level that broadcast."""
        raise NotImplementedError(f"{type(self.pattern).__name__} has no table of biases.")

    # -- layout -------------------------------------------------------------------------------

    @property
    def levels(self) -> int:
        return self.pattern.num_levels(max(self.n_queries, self.n_keys))

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

    # -- definition ---------------------------------------------------------------------------

    def rule(self, device: torch.device | str | None = None) -> Clusters:
        return _clusters(self, str(device or "cpu"))

    def allows(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        return self.rule(k_idx.device)(q_idx, k_idx)

    def bias_place(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        """Row of the table of relative positions for each pair (broadcast shape)."""
        return self.rule(k_idx.device).bias_place(q_idx, k_idx)

    def num_pairs(self, length: int) -> int:
        return self.tiles(self.num_joined_keys).num_pairs


@dataclass(frozen=True)
class _ByLevel(Joined):
    """Fine queries over clusters of keys, as `level` of the pattern says.

    A cluster is read as a whole, and its first token tells of all.
    """

    def cluster_of(self, q_idx: Tensor, level: Tensor | int) -> Tensor:
        return q_idx

    def meets(self, level: Tensor | int, query: Tensor, key: Tensor) -> Tensor:
        first = key.clamp(min=0) << level
        read = self.pattern.allows(query, first) & (key >= 0)
        return read & (self.pattern.level(query, first) == level)
