"""A pattern together with the rule by which its pairs pick a row of a table of biases.

What `attend` hands to an engine for a TableBias: the plan and the pairs are those of the pattern,
and `bias_place` says which row a pair gains. Rules by distance count tokens of the sequence; the
rule of a grid is the pattern's own. None of these can be named in a text, so all are abstract.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveal.common.memo import remember
from foveal.patterns.base import HeadMask, Overlap, Pattern
from foveal.patterns.offsets import Codes, grid_codes
from foveal.patterns.tiling import TileGroup, Tiling


@dataclass(frozen=True)
class Tabled(Pattern, abstract=True):
    """The pattern as it is, and a rule for its pairs."""

    pattern: Pattern

    biased_by_table = True

    @property
    def is_causal(self) -> bool:
        return self.pattern.is_causal

    @property
    def heads(self) -> int | None:
        return self.pattern.heads

    def per_head(self) -> tuple[Pattern, ...]:
        return tuple(self.over(one) for one in self.pattern.per_head())

    def over(self, pattern: Pattern) -> Tabled:
        """The same rule for another pattern."""
        return type(self)(**{**self._contents(), "pattern": pattern})

    @property
    def keeps_apart(self) -> bool:  # type: ignore[override]
        return self.pattern.keeps_apart

    def in_head(self, device: torch.device | str | None = None) -> HeadMask:
        return self.pattern.in_head(device)

    def allows(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        return self.pattern.allows(q_idx, k_idx)

    def rule(self, device: torch.device | str | None = None) -> Callable[[Tensor, Tensor], Tensor]:
        return self.pattern.rule(device)

    @property
    def natural_length(self) -> int | None:
        return self.pattern.natural_length

    def check_length(self, length: int) -> None:
        self.pattern.check_length(length)

    def num_queries(self, n_keys: int) -> int:
        return self.pattern.num_queries(n_keys)

    def check_lengths(self, n_queries: int, n_keys: int) -> None:
        self.pattern.check_lengths(n_queries, n_keys)

    def overlap(self, q_first: Tensor, q_last: Tensor, k_first: Tensor, k_last: Tensor) -> Overlap:
        return self.pattern.overlap(q_first, q_last, k_first, k_last)

    def num_pairs(self, length: int) -> int:
        return self.pattern.num_pairs(length)

    def tiles(self, length: int) -> Tiling:
        return self.pattern.tiles(length)

    @property
    def has_codes(self) -> bool:
        """Whether differences of numbers that tokens have tell the row of every pair."""
        return True

    def codes(self, n_queries: int, n_keys: int) -> Codes:
        """These numbers, where there are any."""
        raise NotImplementedError(f"rows of {type(self).__name__} follow from no differences.")


@dataclass(frozen=True)
class OwnRows(Tabled, abstract=True):
    """The rule of the pattern itself."""

    @property
    def bias_size(self) -> int | None:
        return self.pattern.bias_size

    def bias_place(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        return self.pattern.bias_place(q_idx, k_idx)

    @property
    def has_codes(self) -> bool:
        return self.pattern.bias_size is None or self.pattern.has_offset_codes

    def codes(self, n_queries: int, n_keys: int) -> Codes:
        return self.pattern.offset_codes(n_queries, n_keys)


@dataclass(frozen=True)
class ListedRows(Tabled, abstract=True):
    """A rule of the user's own: place(q_idx, k_idx) -> row, of positions that broadcast."""

    place: Callable[[Tensor, Tensor], Tensor]
    size: int

    opaque = True
    has_codes = False

    @property
    def bias_size(self) -> int:
        return self.size

    def bias_place(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        q, k = self.pattern.tokens(q_idx, k_idx)
        rows = _as_rows(self.place(q, k), torch.broadcast_shapes(q.shape, k.shape))
        if _is_plain(rows):
            outside = (rows < 0) | (rows >= self.size)
            if bool(outside.any()):
                self._check_inside(rows, outside, q_idx, k_idx)
        return rows.clamp(0, self.size - 1)

    def _check_inside(self, rows: Tensor, outside: Tensor, q_idx: Tensor, k_idx: Tensor) -> None:
        """Raise ValueError where a pair that exists would have a row that the table has not."""
        if self.pattern.heads is None:
            outside = outside & self.pattern.allows(q_idx, k_idx)
        if self.pattern.heads is None and bool(outside.any()):
            raise ValueError(
                f"TableBias.rows must return rows from 0 to {self.size - 1}, those of the table, "
                f"got {int(rows[outside][0])}; clamp them, or make the table larger."
            )


@dataclass(frozen=True)
class DistanceRows(Tabled, abstract=True):
    """A rule by how many tokens a key stands before its query."""

    def row_of(self, offset: Tensor) -> Tensor:
        """query - key, of any shape -> row, elementwise."""
        raise NotImplementedError

    def bias_place(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        q, k = self.pattern.tokens(q_idx, k_idx)
        return self.row_of(q - k)

    def codes(self, n_queries: int, n_keys: int) -> Codes:
        places = (torch.arange(n, device="cpu") for n in (n_queries, n_keys))
        queries, keys = self.pattern.tokens(*places)
        return grid_codes((queries,), (keys,), lambda offsets: self.row_of(offsets[0]))


@dataclass(frozen=True)
class ClippedRows(DistanceRows, abstract=True):
    """A row for each offset from `low` to `high`; what lies beyond gains the last one."""

    low: int
    high: int

    @property
    def bias_size(self) -> int:
        return self.high - self.low + 1

    def row_of(self, offset: Tensor) -> Tensor:
        return offset.clamp(self.low, self.high) - self.low


@dataclass(frozen=True)
class FarRows(DistanceRows, abstract=True):
    """A row for each distance |query - key| from 0 to size - 1."""

    size: int

    @property
    def bias_size(self) -> int:
        return self.size

    def row_of(self, offset: Tensor) -> Tensor:
        return offset.abs().clamp(max=self.size - 1)


@dataclass(frozen=True)
class BucketRows(DistanceRows, abstract=True):
    """The buckets of T5: short distances each their own, longer ones by their logarithm.

    Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
    Transformer" (2020), section 2.1; rounded in float32 as the public checkpoints were trained.
    """

    size: int
    max_distance: int
    bidirectional: bool

    @property
    def bias_size(self) -> int:
        return self.size

    def row_of(self, offset: Tensor) -> Tensor:
        buckets = self.size // 2 if self.bidirectional else self.size
        near = buckets // 2
        distance = offset.abs() if self.bidirectional else offset.clamp(min=0)
        ratio = torch.log(distance.clamp(min=near).to(torch.float32) / near)
        ratio = ratio / math.log(self.max_distance / near) * (buckets - near)
        far = (near + ratio.to(torch.int64)).clamp(max=buckets - 1)
        row = torch.where(distance < near, distance, far)
        return row + (offset < 0) * buckets if self.bidirectional else row


def _as_rows(found: Any, shape: tuple[int, ...]) -> Tensor:
    """What a rule says of pairs of this shape, if it can be rows of a table."""
    kind = getattr(found, "dtype", type(found).__name__)
    is_rows = isinstance(found, Tensor) and not (
        found.is_floating_point() or found.is_complex() or found.dtype == torch.bool
    )
    if not is_rows:
        raise TypeError(
            f"TableBias.rows must return an int tensor, the row of each pair, got {kind}; compute "
            "it from its arguments, such as (q_idx - k_idx).clamp(0, 7)."
        )
    try:
        return found.expand(shape).long()
    except RuntimeError:
        raise ValueError(
            f"TableBias.rows must return a row for each pair, shape {tuple(shape)}, got "
            f"{tuple(found.shape)}; it is asked elementwise, of positions that broadcast."
        ) from None


def _is_plain(x: Tensor) -> bool:
    """Whether the numbers can be looked at without waiting for a device."""
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    return not torch.compiler.is_compiling() and type(x) is Tensor and x.is_cpu and not wrapped(x)


@remember(entries=128)
def codes_of(pattern: Tabled, n_queries: int, n_keys: int) -> Codes:
    """Codes of a pattern for as many tokens; kept."""
    return pattern.codes(n_queries, n_keys)


@remember(entries=256)
def are_alike(pattern: Tabled, group: TileGroup, n_queries: int, n_keys: int) -> bool:
    """Whether all tiles of a group pick the same rows, each pair where the others do."""
    if not pattern.has_codes:
        return False
    codes = codes_of(pattern, n_queries, n_keys)
    queries, keys = codes.query[group.queries.index()], codes.key[group.key_index()]
    own = [x - queries[:, :1] for x in (queries, keys)]
    return all(bool((x == x[:1]).all()) for x in own)
