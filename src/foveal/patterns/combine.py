"""Patterns made of patterns: a pair is allowed by any of them, or by all of them."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveal.patterns.base import Band, HeadMask, Overlap, Pattern
from foveal.patterns.documents import Documents
from foveal.patterns.full import Full
from foveal.patterns.needs import Stretches, together
from foveal.patterns.offsets import Codes, Coordinates
from foveal.patterns.packs import pack_tiles, pairs_within
from foveal.patterns.subclasses import is_a
from foveal.patterns.tiling import Tiling


@dataclass(frozen=True, init=False)
class _Combined(Pattern, abstract=True):
    """What unions and intersections share: their parts, checks and heads."""

    parts: tuple[Pattern, ...]

    def __init__(self, *parts: Pattern) -> None:
        name = type(self).__name__
        if not parts:
            raise ValueError(f"{name} needs at least one pattern, got none.")
        for part in parts:
            if not isinstance(part, Pattern):
                raise ValueError(f"{name} takes patterns, got {part!r}.")
        # nested unions (intersections) are flattened, so that (a | b) | c == a | (b | c)
        flat: list[Pattern] = []
        for part in parts:
            flat.extend(part.parts if type(part) is type(self) else [part])
        counts = {part.heads for part in flat if part.heads is not None}
        if len(counts) > 1:
            raise ValueError(f"parts of {name} must agree in heads, got {sorted(counts)}.")
        object.__setattr__(self, "parts", tuple(flat))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.parts))})"

    @property
    def heads(self) -> int | None:
        return next((part.heads for part in self.parts if part.heads is not None), None)

    def per_head(self) -> tuple[Pattern, ...]:
        if self.heads is None:
            return (self,)
        return tuple(
            type(self)(
                *(part if part.heads is None else part.per_head()[i] for part in self.parts)
            )
            for i in range(self.heads)
        )

    def in_head(self, device: torch.device | str | None = None) -> HeadMask:
        rules = [part.in_head(device) for part in self.parts]
        return lambda head, q_idx, k_idx: self.fold([rule(head, q_idx, k_idx) for rule in rules])

    def rule(self, device: torch.device | str | None = None) -> Callable[[Tensor, Tensor], Tensor]:
        rules = [part.rule(device) for part in self.parts]
        return lambda q_idx, k_idx: self.fold([rule(q_idx, k_idx) for rule in rules])

    def num_queries(self, n_keys: int) -> int:
        counts = {part.num_queries(n_keys) for part in self.parts}
        if len(counts) > 1:
            raise ValueError(
                f"parts of {type(self).__name__} must agree in queries, got {sorted(counts)} for "
                f"{n_keys} keys."
            )
        return counts.pop()

    @property
    def period(self) -> int | None:
        known = [period for part in self.parts if (period := part.period) is not None]
        return math.lcm(*known) if len(known) == len(self.parts) else None

    @property
    def natural_length(self) -> int | None:
        """The longest of the parts' that all parts take."""
        known = {one for part in self.parts if (one := part.natural_length) is not None}
        return max(filter(self.takes_length, known), default=None)

    def check_length(self, length: int) -> None:
        for part in self.parts:
            part.check_length(length)

    def check_lengths(self, n_queries: int, n_keys: int) -> None:
        for part in self.parts:
            part.check_lengths(n_queries, n_keys)

    def num_pairs(self, length: int) -> int:
        return sum(one.tiles(length).num_pairs for one in self.per_head())

    # -- offsets: those of the parts on a grid, which parts along the sequence leave as they are --

    @property
    def _on_grid(self) -> tuple[Pattern, ...]:
        parts = [one for one in self.parts if one.bias_size is not None and not one.pools]
        return tuple(parts)  # lists, for the compiler follows

    @property
    def grid(self) -> tuple[int, ...] | None:
        return self._on_grid[0].grid if self._on_grid else None

    @property
    def offset_reach(self) -> tuple[int, ...] | None:
        reaches = [part.offset_reach for part in self._on_grid]
        if not reaches or None in reaches or any(part.grid != self.grid for part in self._on_grid):
            return None
        return tuple([self._joint_reach(axis) for axis in zip(*reaches, strict=True)])

    @property
    def offset_step(self) -> tuple[int, ...]:
        steps = zip(*[part.offset_step for part in self._on_grid], strict=True)
        return tuple([self._joint_step(axis) for axis in steps])

    def _joint_reach(self, reaches: Iterable[int]) -> int:
        return max(reaches)

    def _joint_step(self, steps: Iterable[int]) -> int:
        return math.gcd(*steps)

    def coordinates(self, idx: Tensor) -> Coordinates:
        return self._on_grid[0].coordinates(idx) if self._on_grid else (idx,)

    def query_coordinates(self, q_idx: Tensor) -> Coordinates:
        return self._on_grid[0].query_coordinates(q_idx) if self._on_grid else (q_idx,)

    @property
    def bias_size(self) -> int | None:
        own = self._own_rule
        return self._rows_of_grid() if own is None else own.bias_size

    def bias_place(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        own = self._own_rule
        if own is None:
            return super().bias_place(q_idx, k_idx)
        return own.bias_place(q_idx, k_idx)

    @property
    def has_offset_codes(self) -> bool:
        own = self._own_rule
        return super().has_offset_codes if own is None else own.has_offset_codes

    def offset_codes(self, n_queries: int, n_keys: int) -> Codes:
        own = self._own_rule
        if own is None:
            return super().offset_codes(n_queries, n_keys)
        return own.offset_codes(n_queries, n_keys)

    @property
    def _own_rule(self) -> Pattern | None:
        """The part whose rule holds for all pairs, where the rules do not add up to one of a grid.

        Raises:
            ValueError: several parts have rules that differ.
        """
        if not self._on_grid or self.offset_reach is not None:
            return None
        if len(set(self._on_grid)) > 1:
            parts = " and ".join(map(str, self._on_grid))
            raise ValueError(
                f"{parts} have rows of a TableBias by rules that differ; say which row a pair "
                "gains: TableBias(table, rows=function of (q_idx, k_idx))."
            )
        return self._on_grid[0]

    def fold(self, found: Iterable[Tensor]) -> Tensor:
        """What the parts say, bools of shapes that broadcast, taken together."""
        raise NotImplementedError

    def allows(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        return self.fold(part.allows(q_idx, k_idx) for part in self.parts)

    def overlap(self, q_first: Tensor, q_last: Tensor, k_first: Tensor, k_last: Tensor) -> Overlap:
        # an intersection of "some pair" may be empty and a union of halves full: both are allowed
        found = [part.overlap(q_first, q_last, k_first, k_last) for part in self.parts]
        some, every = zip(*found, strict=True)
        return self.fold(some), self.fold(every)


@dataclass(frozen=True, init=False, repr=False)
class Union(_Combined):
    """A pair is allowed where any of the patterns allows it: `Union(a, b)` or `a | b`.

    Causal when all of them are. A tile reads the keys of all patterns, so unions of patterns whose
    keys lie apart cost the sum of their keys in every tile.
    """

    @property
    def causal(self) -> bool:
        return all(part.is_causal for part in self.parts)

    @property
    def always_reads(self) -> bool:  # type: ignore[override]
        return any(part.always_reads for part in self.parts)

    def band(self) -> Band | None:
        bands = [part.band() for part in self.parts]
        known = [band for band in bands if band is not None]
        if len(known) < len(bands):
            return None
        back, ahead = zip(*known, strict=True)
        return _widest(back), _widest(ahead)

    def fold(self, found: Iterable[Tensor]) -> Tensor:
        return functools.reduce(operator.or_, found)

    def needs(self, first: int, last: int, length: int) -> Stretches:
        return together([part.needs(first, last, length) for part in self.parts])

    @property
    def decodes_from(self) -> int | None:
        found = [part.decodes_from for part in self.parts]
        return _widest(found)

    def reads(self, position: int) -> Tensor:
        self._require_causal("reads", position)
        return torch.cat([part.reads(position) for part in self.parts]).unique()

    def keeps(self, position: int) -> Tensor:
        self._require_causal("keeps", position + 1)
        return torch.cat([_positions(part.keeps(position)) for part in self.parts]).unique()

    def horizon(self) -> tuple[int, int] | None:
        bounds = [part.horizon() for part in self.parts]
        known = [bound for bound in bounds if bound is not None]
        if len(known) < len(bounds):
            return None
        return max(prefix for prefix, _ in known), max(window for _, window in known)


@dataclass(frozen=True, init=False, repr=False)
class Intersection(_Combined):
    """A pair is allowed where all of the patterns allow it: `Intersection(a, b)` or `a & b`.

    Causal when any of them is, so `pattern & Full(causal=True)` cuts a pattern to the past. A
    query may be left without a key; its output is zero.
    """

    @property
    def causal(self) -> bool:
        return any(part.is_causal for part in self.parts)

    @property
    def decodes_from(self) -> int | None:
        return _narrowest(part.decodes_from for part in self.parts)

    @property
    def keeps_apart(self) -> bool:  # type: ignore[override]
        return any(part.keeps_apart for part in self.parts)

    def documents(self) -> Any:
        return next(part for part in self.parts if part.keeps_apart).documents()

    def band(self) -> Band | None:
        known = [band for part in self.parts if (band := part.band()) is not None]
        if not known:
            return None
        back, ahead = zip(*known, strict=True)
        return _narrowest(back), _narrowest(ahead)

    def _within(self) -> Pattern:
        """What must hold within the documents, positions as in the row."""
        apart = next(part for part in self.parts if part.keeps_apart)
        others = [part for part in self.parts if part is not apart]
        if not is_a(apart, Documents):
            return self
        return Intersection(*others) if len(others) > 1 else (others or [Full()])[0]

    def _part(self, first: int, count: int, length: int) -> Tiling:
        if not self.keeps_apart:
            return super()._part(first, count, length)
        return pack_tiles(self._within(), self.documents(), (first, count), length, False)

    def num_pairs(self, length: int) -> int:
        within = self._within() if self.keeps_apart else self
        if within is self or within.period != 1:
            return super().num_pairs(length)
        return pairs_within(within, self.documents())

    def fold(self, found: Iterable[Tensor]) -> Tensor:
        return functools.reduce(operator.and_, found)

    def _joint_reach(self, reaches: Iterable[int]) -> int:
        return min(reaches)

    def _joint_step(self, steps: Iterable[int]) -> int:
        return math.lcm(*steps)

    def reads(self, position: int) -> Tensor:
        self._require_causal("reads", position)
        first = next(part for part in self.parts if _decodes(part, position))
        keys = first.reads(position)
        allowed = self.allows(torch.tensor(position, device="cpu"), keys)
        return keys[allowed if self.heads is None else allowed.any(0)]

    def keeps(self, position: int) -> Tensor:
        self._require_causal("keeps", position + 1)
        kept = [part.keeps(position) for part in self.parts if _decodes(part, position + 1)]
        kept += [part.past(position) for part in self.parts if is_a(part, Documents)]
        found = [_positions(one) for one in kept]
        return functools.reduce(lambda a, b: a[torch.isin(a, b)], found)

    def horizon(self) -> tuple[int, int] | None:
        if self.decodes_from is None:
            return None
        bounds = [part.horizon() for part in self.parts]  # of what is not causal None, or right
        known = [bound for bound in bounds if bound is not None]
        return min(known, key=sum) if known else None


def _decodes(part: Pattern, position: int) -> bool:
    return part.decodes_from is not None and part.decodes_from <= position


def _widest(bounds: Iterable[int | None]) -> int | None:
    known = list(bounds)
    return None if None in known else max(one for one in known if one is not None)


def _narrowest(bounds: Iterable[int | None]) -> int | None:
    return min((one for one in bounds if one is not None), default=None)


def _positions(kept: range | Tensor) -> Tensor:
    return torch.arange(kept.start, kept.stop, device="cpu") if isinstance(kept, range) else kept
