"""Some of the queries of a pattern, over all keys or over the stretch of them that is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveal.patterns.base import HeadMask, Overlap, Pattern
from foveal.patterns.joined import Joined
from foveal.patterns.offsets import Codes
from foveal.patterns.packs import clipped
from foveal.patterns.sizes import refuse_more
from foveal.patterns.tiling import Tiling

Rule = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Part(Pattern):
    """Queries `first` to `first + count` of a pattern, numbered from 0: what `q_offset` makes.

    Its plan is that of these queries alone, and takes no longer for a longer sequence.

    Args:
        pattern: the whole.
        first, count: which queries.
        skipped: keys in front that are left out; key 0 of the part is key `skipped` of the whole.

    Raises:
        ValueError: pattern is none, or a number is negative.
    """

    pattern: Pattern
    first: int
    count: int
    skipped: int = 0

    def __post_init__(self) -> None:
        if torch.compiler.is_compiling():
            return
        if not isinstance(self.pattern, Pattern):
            raise ValueError(f"Part takes a pattern, got pattern={self.pattern!r}.")
        self._check_ints(0, "first", "count", "skipped")

    # -- definition -------------------------------------------------------------------------

    def allows(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        return self.pattern.allows(q_idx + self.first, k_idx + self.skipped)

    def rule(self, device: torch.device | str | None = None) -> Rule:
        return _Moved(self.pattern.rule(device), self.first, self.skipped)

    def in_head(self, device: torch.device | str | None = None) -> HeadMask:
        rule, first, skipped = self.pattern.in_head(device), self.first, self.skipped
        return lambda head, q_idx, k_idx: rule(head, q_idx + first, k_idx + skipped)

    @property
    def heads(self) -> int | None:
        return self.pattern.heads

    def per_head(self) -> tuple[Pattern, ...]:
        if self.heads is None:
            return (self,)
        rest = self.first, self.count, self.skipped
        return tuple([Part(one, *rest) for one in self.pattern.per_head()])

    @property
    def is_causal(self) -> bool:
        return self.pattern.is_causal and self.first <= self.skipped

    def num_queries(self, n_keys: int) -> int:
        return self.count

    @property
    def natural_length(self) -> int | None:
        whole = self.pattern.natural_length
        return None if whole is None else max(0, whole - self.skipped)

    def check_length(self, length: int) -> None:
        super().check_length(length)
        whole = self.skipped + length
        if self.pattern.num_queries(whole) == whole:  # a place is as good for a query as for a key
            whole = max(whole, self.first + self.count)
        self.pattern.check_length(whole)

    def check_lengths(self, n_queries: int, n_keys: int) -> None:
        self.check_length(n_keys)
        refuse_more(n_queries, self.count, n_keys, self)
        whole = self.skipped + n_keys
        if (total := self.pattern.num_queries(whole)) != whole:
            refuse_more(self.first + n_queries, total, whole, self.pattern)

    def near(self) -> Part:
        """The same with places that are counted from as near as the pattern allows: far apart or
        not, such parts are equal and share a plan. What goes by the places themselves differs."""
        if not self.skipped or (period := self.pattern.period) is None:
            return self
        moved = min(self.first, self.skipped) // period * period
        return Part(self.pattern, self.first - moved, self.count, self.skipped - moved)

    # -- what else the whole has ------------------------------------------------------------

    @property
    def reads_all(self) -> bool:  # type: ignore[override]
        return self.pattern.reads_all

    @property
    def keeps_apart(self) -> bool:  # type: ignore[override]
        return self.pattern.keeps_apart

    def documents(self) -> Any:
        return [
            one._replace(query=one.query - self.first, key=one.key - self.skipped)
            for one in clipped(self.pattern.documents(), self.first, self.count, self.skipped)
        ]

    @property
    def biased_by_table(self) -> bool:  # type: ignore[override]
        return self.pattern.biased_by_table

    @property
    def bias_size(self) -> int | None:
        return self.pattern.bias_size

    def bias_place(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        return self.pattern.bias_place(q_idx + self.first, k_idx + self.skipped)

    def tokens(self, q_idx: Tensor, k_idx: Tensor) -> tuple[Tensor, Tensor]:
        return self.pattern.tokens(q_idx + self.first, k_idx + self.skipped)

    def counts_tokens(self, n_keys: int) -> bool:
        return True  # the whole was asked, when all of its keys were there

    def farthest(self, n_queries: int, n_keys: int, first: int = 0, skipped: int = 0) -> int:
        first, skipped = first + self.first, skipped + self.skipped
        return self.pattern.farthest(n_queries, n_keys, first, skipped)

    @property
    def has_offset_codes(self) -> bool:
        return self.pattern.has_offset_codes

    def offset_codes(self, n_queries: int, n_keys: int) -> Codes:
        query, key, rows = self.pattern.offset_codes(self.first + n_queries, self.skipped + n_keys)
        return Codes(query[self.first :], key[self.skipped :], rows)

    @property
    def pools(self) -> bool:  # type: ignore[override]
        return self.pattern.pools

    def level(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        return self.pattern.level(q_idx + self.first, k_idx + self.skipped)

    def num_levels(self, length: int) -> int:
        return self.pattern.num_levels(length)

    def joined(self, n_queries: int, n_keys: int) -> Any:
        whole = self.pattern.joined(self.first + self.count, n_keys)
        return JoinedPart(whole, self.first, self.count)

    # -- plan -------------------------------------------------------------------------------

    def overlap(self, q_first: Tensor, q_last: Tensor, k_first: Tensor, k_last: Tensor) -> Overlap:
        q, k = self.first, self.skipped
        return self.pattern.overlap(q_first + q, q_last + q, k_first + k, k_last + k)

    def _part(self, first: int, count: int, length: int) -> Tiling:
        whole = (self.first + first, count, self.skipped + length)
        if self.skipped and self.pattern._span(*whole)[0] < self.skipped:
            return super()._part(first, count, length)  # keys that are left out would be read
        return self.pattern._part(*whole).shift(0, -self.skipped, count, length)

    def _span(self, first: int, count: int, length: int) -> tuple[int, int]:
        low, high = self.pattern._span(self.first + first, count, self.skipped + length)
        return max(0, low - self.skipped), max(0, high - self.skipped)

    def num_pairs(self, length: int) -> int:
        if self.pools:
            return int(self.joined(self.count, length).num_pairs(length))
        return super().num_pairs(length)


@dataclass(frozen=True)
class JoinedPart(Part, abstract=True):
    """Some of the queries over the pooled keys of all levels; see `Joined`, whose names it has.

    Queries stay fine: tokens that share a query would have to come together.
    """

    pattern: Joined
    coarse = False

    @property
    def levels(self) -> int:
        return self.pattern.levels

    @property
    def unit(self) -> int:
        return self.pattern.unit

    @property
    def num_joined_keys(self) -> int:
        return self.pattern.num_joined_keys

    def check_length(self, length: int) -> None:
        pass

    def check_lengths(self, n_queries: int, n_keys: int) -> None:
        pass

    def cluster_of(self, q_idx: Tensor, level: Tensor | int) -> Tensor:
        """Clusters of queries of the part, of any shape, at a level of a shape that broadcasts."""
        return self.pattern.cluster_of(q_idx + self.first, level)

    def bias_row(self, level: Tensor | int, query: Tensor, key: Tensor) -> Tensor:
        """That of the whole, for clusters of one level that broadcast."""
        return self.pattern.bias_row(level, query, key)

    # by the tiles, which know what the borders of blocks do not
    overlap = Pattern.overlap

    def num_pairs(self, length: int) -> int:
        return self.tiles(self.num_joined_keys).num_pairs


class _Moved:
    """A rule for positions that begin later."""

    def __init__(self, rule: Rule, first: int, skipped: int) -> None:
        self.rule, self.first, self.skipped = rule, first, skipped
        self.exists = getattr(rule, "exists", None)  # of pooled keys, none of which is skipped

    def __call__(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        return self.rule(q_idx + self.first, k_idx + self.skipped)
