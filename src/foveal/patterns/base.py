"""What a pattern is, with a default for everything but its definition.

A pattern says which query positions attend to which key positions. It is geometry only: a frozen
dataclass without weights or data, cheap to build, hashable, and comparable.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from foveal.patterns.tiling import Tiling, consecutive, listed_groups

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

MASK_CHUNK = 1 << 24
"""Pairs evaluated at once where a default has to look at all of them."""

PATTERN_CLASSES: dict[str, type[Pattern]] = {}
"""Every pattern class by name."""


@dataclass(frozen=True)
class Pattern:
    """Base of all patterns: subclass it as a frozen dataclass and define `allows`.

    Everything else has a default derived from `allows`; override `_tiles`, `overlap`, `reads`,
    `horizon` and `num_pairs` where the geometry gives them in closed form.

    Attributes:
        causal: no query reads a key at a later position.
        heads: number of heads the pattern distinguishes, or None when all heads are alike.
    """

    @property
    def is_causal(self) -> bool:
        """Whether no query ever reads a later key."""
        return bool(getattr(self, "causal", False))

    @property
    def heads(self) -> int | None:
        """Number of heads with patterns of their own; None when one pattern serves all."""
        return None

    def per_head(self) -> tuple[Pattern, ...]:
        """One pattern for each head; only where `heads` is not None."""
        return (self,)

    # class attributes without annotations, so that they are no fields
    opaque = False
    """Whether fields hold more than ints, strings, bools, tuples and patterns."""

    def __init_subclass__(cls) -> None:
        PATTERN_CLASSES[cls.__qualname__] = cls

    @classmethod
    def from_fields(cls, *fields: Any) -> Pattern:
        """A pattern from the values of its dataclass fields, in order."""
        return cls(*fields)

    always_reads = False
    """Whether every query reads at least one key at any length (class attribute)."""

    biased_by_table = False
    """Whether a bias is a table whose rows `bias_place` picks (class attribute)."""

    def bias_place(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        """Row of a bias table for each pair; only where `biased_by_table`."""
        raise NotImplementedError(f"{type(self).__name__} has no table of biases.")

    # -- definition -------------------------------------------------------------------------

    def allows(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        """Elementwise: may the query at `q_idx` read the key at `k_idx`?

        Args:
            q_idx, k_idx: integer positions of shapes that broadcast.

        Returns:
            bool tensor of the broadcast shape; with `heads`, a leading dimension of heads.
        """
        raise NotImplementedError(f"{type(self).__name__} must define allows(q_idx, k_idx).")

    def rule(self, device: torch.device | str | None = None) -> Callable[[Tensor, Tensor], Tensor]:
        """`allows` for positions on a device; where it looks things up, the tables lie there."""
        return self.allows

    def check_length(self, length: int) -> None:
        """Raise ValueError if a sequence of this length makes no sense for the pattern."""
        if length < 0:
            raise ValueError(f"length must not be negative, got {length=}.")

    def num_queries(self, n_keys: int) -> int:
        """Queries that go with this many keys: as many, unless the pattern strides them."""
        return n_keys

    # -- dense view -------------------------------------------------------------------------

    def mask(
        self,
        n_queries: int,
        n_keys: int | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """The dense oracle: (n_queries, n_keys) bool, True = attend; (heads, ...) with `heads`."""
        n_keys = n_queries if n_keys is None else n_keys
        self.check_length(max(n_queries, n_keys))
        q = torch.arange(n_queries, device=device)[:, None]
        k = torch.arange(n_keys, device=device)[None, :]
        shape = (n_queries, n_keys) if self.heads is None else (self.heads, n_queries, n_keys)
        return self.allows(q, k).expand(shape)

    # -- fast view --------------------------------------------------------------------------

    def tiles(self, length: int) -> Tiling:
        """The tile plan for a self-attention of `length` tokens; built once and cached."""
        return _cached_tiles(self, length)

    def _tiles(self, length: int) -> Tiling:
        num_queries = self.num_queries(length)
        groups = listed_groups(
            self.allows,
            consecutive(num_queries),
            lambda queries: self._candidates(queries, length),
        )
        return Tiling(num_queries, length, tuple(groups))

    def overlap(self, q_first: Tensor, q_last: Tensor, k_first: Tensor, k_last: Tensor) -> Overlap:
        """Interval form of `allows`: for stretches of queries and keys (inclusive, broadcast).

        Returns (any, all): `any` is False only where no pair is allowed, `all` is True only where
        every pair is. The default knows nothing: (True, False).
        """
        shape = torch.broadcast_shapes(q_first.shape, k_first.shape)
        device = q_first.device
        return (
            torch.ones(shape, dtype=torch.bool, device=device),
            torch.zeros(shape, dtype=torch.bool, device=device),
        )

    def _candidates(self, queries: Tensor, length: int, block: int = 16) -> Tensor:
        """Sorted keys that the queries may read, found by blocks; a superset is fine."""
        last = int(queries.max()) + 1 if self.is_causal else length
        starts = torch.arange(0, last, block)
        ends = (starts + block - 1).clamp(max=last - 1)
        possible = self.overlap(queries.min(), queries.max(), starts, ends)[0]
        keys = starts[possible.expand(starts.shape)][:, None] + torch.arange(block)
        keys = keys.reshape(-1)
        return keys[keys < last]

    def block_mask(
        self, length: int, block: int = 128, device: torch.device | str | None = None
    ) -> BlockMask:
        """FlexAttention's BlockMask from `overlap` on block borders; never looks at n^2 pairs."""
        from foveal.patterns.blockmask import analytic_block_mask

        self.check_length(length)
        return analytic_block_mask(self, length, block, device)

    # -- decoding ---------------------------------------------------------------------------

    def reads(self, position: int) -> Tensor:
        """Key positions that a token at `position` reads, ascending: (num_keys,) int64.

        Raises:
            ValueError: the pattern is not causal, so a new token cannot be decoded.
        """
        self._require_causal("reads")
        last = position + 1
        bounds = self.horizon()
        if bounds is None or last <= sum(bounds):
            keys = torch.arange(last)
        else:
            prefix, window = bounds
            recent = torch.arange(max(prefix, last - window), last)
            keys = torch.cat([torch.arange(prefix), recent])
        return keys[self.allows(torch.tensor(position), keys)]

    def horizon(self) -> tuple[int, int] | None:
        """(prefix, window): a query reads keys below `prefix`, or among the `window` latest.

        None when a key may stay readable without bound. A cache needs no more than `prefix`
        plus `window` places.
        """
        return None

    def keeps(self, position: int) -> range | Tensor:
        """Positions that a cache must still hold after `position`, for the tokens to come."""
        self._require_causal("keeps")
        bounds = self.horizon()
        if bounds is None:
            return range(position + 1)
        prefix, window = bounds
        recent = range(max(0, position + 2 - window), position + 1)
        if prefix == 0 or recent.start <= prefix:
            return range(0 if prefix else recent.start, position + 1)
        return torch.cat([torch.arange(prefix), torch.arange(recent.start, recent.stop)])

    def _require_causal(self, what: str) -> None:
        if not self.is_causal:
            raise ValueError(
                f"{what} needs a causal pattern, got {self}; decoding a token at a time is only "
                "defined when no query reads a later key (causal=True)."
            )

    # -- counting ---------------------------------------------------------------------------

    def num_pairs(self, length: int) -> int:
        """Allowed (query, key) pairs at this length, summed over `heads` where they differ."""
        return self.tiles(length).num_pairs

    # -- algebra ----------------------------------------------------------------------------

    def __or__(self, other: Any) -> Pattern:
        from foveal.patterns.combine import Union

        return Union(self, other) if isinstance(other, Pattern) else NotImplemented

    def __and__(self, other: Any) -> Pattern:
        from foveal.patterns.combine import Intersection

        return Intersection(self, other) if isinstance(other, Pattern) else NotImplemented


Overlap = tuple[Tensor, Tensor]


@functools.lru_cache(maxsize=256)
def _cached_tiles(pattern: Pattern, length: int) -> Tiling:
    pattern.check_length(length)
    if pattern.heads is not None:
        raise ValueError(
            f"{type(pattern).__name__} has {pattern.heads} heads with patterns of their own; "
            "take the plan of one of pattern.per_head()."
        )
    return pattern._tiles(length)


INTS = (int, torch.SymInt)  # sizes are symbols while a model is exported


def check_positive(**values: int) -> None:
    """Raise ValueError for the first value that is not a positive int, naming it."""
    for name, value in values.items():
        if not isinstance(value, INTS) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a positive int, got {name}={value!r}.")


def pair(value: int | tuple[int, int], name: str, least: int = 1) -> tuple[int, int]:
    """An int or (height, width) as (height, width), checked to be at least `least` each."""
    both = (value, value) if isinstance(value, INTS) else tuple(value)
    ok = len(both) == 2 and all(isinstance(v, INTS) and v >= least for v in both)
    if not ok:
        raise ValueError(
            f"{name} must be an int or a (height, width) pair of at least {least}, "
            f"got {name}={value!r}."
        )
    return both[0], both[1]


MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
