"""Tables of biases: what a pair of tokens gains by its offset, learned or given."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from foveal.common.checks import as_bool, as_int, check_dense
from foveal.common.memo import remember
from foveal.common.words import shorten
from foveal.patterns import Pattern
from foveal.patterns.tabled import BucketRows, ClippedRows, FarRows, ListedRows, OwnRows

Rows = Callable[[Tensor, Tensor], Tensor]
"""(q_idx, k_idx), positions that broadcast -> row of a table for each pair."""


class Buckets(NamedTuple):
    """The rows of T5: see `TableBias.t5`."""

    max_distance: int = 128
    bidirectional: bool = True


class Far(NamedTuple):
    """A row for each distance |query - key|, whichever comes first."""


class TableBias(NamedTuple):
    """Relative positions by a table: what the logit of a pair gains is the row of its offset.

    * A sequence: 2 m + 1 rows for any m, row clip(query - key, -m, m) + m.
    * A grid (Neighborhood, Halo, Axial, ...): the offset query - key on each axis, in row-major
      order; (2 kernel - 1) a side for a Neighborhood, in steps of its dilation (NAT), and
      (2 block + 2 halo - 1) for a Halo (Swin, and MONAI in three dimensions). NAT counts
      key - query: flip its tables along every axis but the heads.
    * TextImage: the rows of the image pattern where that has a grid, then one for pixels that
      read text and one for text that reads text.
    * A union or intersection: the rule of its parts on a grid, the others having none.
    * Pyramid, and a pattern of your own that is `biased_by_table`: `pattern.bias_place`. Of a
      Pyramid all levels share the table: 4 block_size - 1 rows by the offset in clusters.
    * `TableBias.t5(table)`: the buckets of T5. `TableBias(table, rows=f)`: row f(q_idx, k_idx).

    table: (rows, heads), or (rows, 1) for all heads alike. Heads first, (heads, rows) or
        (heads, 2 k - 1, 2 k - 1), is understood too, where both readings do not fit or the other
        one would be a single row.
    rows: a rule of your own in place of the pattern's: (q_idx, k_idx) -> rows, elementwise, of
        positions that broadcast. It is asked for pairs that do not exist too, and may say
        anything of them.
    """

    table: Tensor
    rows: Rows | Buckets | Far | None = None

    @classmethod
    def t5(cls, table: Tensor, bidirectional: bool = True, max_distance: int = 128) -> TableBias:
        """The buckets of T5: half of them for short distances, the rest by logarithm.

        Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
        Transformer" (2020). Distances are those of tokens in the sequence.

        Args:
            table: (buckets, heads or 1).
            bidirectional: half of the buckets are for keys behind the query; a decoder has none.
            max_distance: from here on, all share the last bucket.
        """
        reach = as_int("max_distance", max_distance, 1)
        return cls(table, Buckets(reach, as_bool("bidirectional", bidirectional)))

    def check(self, q: Tensor, pattern: Pattern) -> None:
        """Raise ValueError if it does not fit queries (batch, heads, n_queries, head_dim)."""
        table = self.table
        if not isinstance(table, Tensor) or not table.dtype.is_floating_point:
            kind = getattr(table, "dtype", type(table).__name__)
            raise ValueError(f"TableBias.table must be a floating tensor, got {kind}.")
        if table.device != q.device:
            raise ValueError(
                f"TableBias.table must be on the device of q, {q.device}, got {table.device}."
            )
        if not (self.rows is None or callable(self.rows) or isinstance(self.rows, Buckets | Far)):
            raise TypeError(
                "TableBias.rows must be a function (q_idx, k_idx) -> rows or None, got "
                f"{type(self.rows).__name__} {shorten(repr(self.rows), 60)}."
            )
        if pattern.pools and self.rows is not None:
            raise ValueError(f"{pattern} pools keys and has rows of its own; leave out rows=.")
        if pattern.biased_by_table and pattern.heads is not None:
            raise ValueError(f"a pattern with heads of its own takes no table, got {pattern}.")
        shape, heads = tuple(table.shape), q.shape[1]
        if _reading(pattern, shape, self.rows, heads) is None:
            raise ValueError(
                f"TableBias.table must be (rows, heads or 1) = ({self._wanted(pattern)}, {heads} "
                f"or 1) for {pattern}, got {shape}."
            )

    def settled(self, pattern: Pattern, heads: int) -> TableBias:
        """The same with a table (rows, heads or 1), whichever way it was given."""
        if _reading(pattern, tuple(self.table.shape), self.rows, heads) == "rows first":
            return self
        return self._replace(table=self.table.flatten(1).T)

    def _wanted(self, pattern: Pattern) -> str:
        """The number of rows in words."""
        if isinstance(self.rows, Buckets):
            kind = "an even number of" if self.rows.bidirectional else "two or more"
            return f"{kind} buckets, half of them below max_distance={self.rows.max_distance}"
        if self.rows is not None:
            return "as many as rows() names"
        own = pattern.bias_size
        return "2 m + 1 offsets from -m to m" if own is None else str(own)

    def placed(self, pattern: Pattern) -> Pattern:
        """The pattern with the rule of this table, which is settled: `biased_by_table`."""
        return _placed(pattern, self.table.shape[0], self.rows)

    def counts_tokens(self, pattern: Pattern) -> bool:
        """Whether the rows go by distances in tokens of the sequence."""
        if self.rows is None:
            return pattern.bias_size is None
        return isinstance(self.rows, Buckets | Far)

    def by_head(self) -> Tensor:
        """The table as engines take it: (1, heads or 1, 1, rows)."""
        return self.table.T[None, :, None]

    def dense(self, pattern: Pattern, n_queries: int, n_keys: int, first: int = 0) -> Tensor:
        """The same as a (1, heads or 1, n_queries, n_keys) tensor, of queries from `first` on."""
        q = torch.arange(first, first + n_queries, device=self.table.device)[:, None]
        k = torch.arange(n_keys, device=self.table.device)
        return self.at(pattern, q, k)[None]

    def at(self, pattern: Pattern, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        """What pairs gain, positions that broadcast: (heads or 1, ...)."""
        return self.table[self.placed(pattern).bias_place(q_idx, k_idx)].movedim(-1, 0)


def moves(bias: object) -> bool:
    """Whether the bias of a pair stays the same where the pattern does: not by a user's rule."""
    return not isinstance(bias, TableBias) or isinstance(bias.rows, Buckets | Far | None)


@remember(entries=512)
def _placed(pattern: Pattern, size: int, rows: Rows | Buckets | Far | None) -> Pattern:
    if rows is None and pattern.biased_by_table:
        return pattern
    if isinstance(rows, Buckets):
        return BucketRows(pattern, size, *rows)
    if isinstance(rows, Far):
        return FarRows(pattern, size)
    if rows is not None:
        return ListedRows(pattern, rows, size)
    if pattern.bias_size is not None:
        return OwnRows(pattern)
    return ClippedRows(pattern, -(size // 2), size // 2)


@remember(entries=512)
def _reading(
    pattern: Pattern, shape: tuple[int, ...], rows: Rows | Buckets | Far | None, heads: int
) -> str | None:
    """How a table of this shape is to be read: "rows first", "heads first", or not at all."""
    first, last = _fits(pattern, shape, rows, heads), _fits(pattern, _turned(shape), rows, heads)
    if first and not (last and shape[0] == 1):
        return "rows first"
    return "heads first" if last else None


def _fits(
    pattern: Pattern, shape: tuple[int, ...], rows: Rows | Buckets | Far | None, heads: int
) -> bool:
    """Whether (rows, heads) is a shape for this pattern."""
    if len(shape) != 2 or shape[1] not in (1, heads):
        return False
    count, own = shape[0], pattern.bias_size
    if isinstance(rows, Buckets):
        near = count // (4 if rows.bidirectional else 2)
        return 0 < near < rows.max_distance and not (rows.bidirectional and count % 2)
    if rows is not None:
        return count > 0
    return count % 2 == 1 if own is None else count == own


def _turned(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(heads, ...) read as (rows, heads)."""
    return (math.prod(shape[1:]), shape[0]) if len(shape) > 1 else shape


class Alibi(NamedTuple):
    """-slope * |query - key| added to the logits of each head: see `alibi`.

    slopes: (heads,) or (1,).
    """

    slopes: Tensor

    def check(self, q: Tensor, pattern: Pattern) -> None:
        """Raise ValueError if it does not fit queries (batch, heads, n_queries, head_dim)."""
        if pattern.biased_by_table or pattern.pools:
            raise ValueError(f"alibi counts single keys, got {pattern}; pass a TableBias.")
        if self.slopes.is_meta and not q.is_meta:
            raise ValueError(f"Alibi.slopes must hold numbers for q on {q.device}, got meta.")
        if tuple(self.slopes.shape) not in ((q.shape[1],), (1,)):
            raise ValueError(
                f"alibi has a slope for each of {self.slopes.numel()} heads, but q has "
                f"{q.shape[1]} heads; make it with alibi({q.shape[1]})."
            )

    def tabled(self, q: Tensor, length: int) -> TableBias:
        """The same as a table (length, heads or 1) for queries as in `attend`.

        A distance is a whole number and its product with a slope is rounded once, to the digits
        of the logit that it meets; as a bias by key it would be the difference of large numbers.
        """
        sums = torch.float64 if q.dtype == torch.float64 else torch.float32
        exact = torch.float32 if q.device.type == "mps" else torch.float64
        far = torch.arange(length, device=q.device, dtype=exact)
        table = far[:, None] * -self.slopes.to(q.device, exact)
        return TableBias(table.to(sums), Far())

    def at(self, pattern: Pattern, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        """What pairs gain, positions that broadcast: (heads or 1, ...)."""
        q, k = pattern.tokens(q_idx, k_idx)
        far = (q - k).abs()
        slopes = self.slopes.to(far.device)
        return -slopes.view(-1, *[1] * far.ndim) * far


def alibi(heads: int, slopes: Tensor | None = None) -> Alibi:
    """Attention with linear biases: each head's logits lose a slope times the distance.

    Press et al., "Train Short, Test Long: Attention with Linear Biases Enables Input Length
    Extrapolation" (2022). Distances |query - key| count tokens of the sequence, so patterns that
    read ahead are biased symmetrically.

    Args:
        heads: number of heads; where it is no power of two, the slopes of the next lower one are
            followed by every other slope of twice as many, as in the authors' code.
        slopes: (heads,) or (1,) in place of the paper's; may be a parameter.

    Raises:
        ValueError: heads is not positive, or slopes are none.
    """
    heads = as_int("heads", heads, 1)
    if slopes is None:
        slopes = torch.tensor(_slopes(heads), dtype=torch.float64, device="cpu")
    if not isinstance(slopes, Tensor) or not slopes.dtype.is_floating_point:
        kind = getattr(slopes, "dtype", type(slopes).__name__)
        raise ValueError(f"slopes must be a floating tensor (heads,) = ({heads},), got {kind}.")
    check_dense("slopes", slopes)
    if tuple(slopes.shape) not in ((heads,), (1,)):
        raise ValueError(
            f"slopes must be (heads,) = ({heads},) or (1,), got {tuple(slopes.shape)}."
        )
    return Alibi(slopes)


def _slopes(heads: int) -> list[float]:
    whole = 1 << (heads.bit_length() - 1)
    found = [2.0 ** (-8 * (i + 1) / whole) for i in range(whole)]
    return found + [2.0 ** (-4 * (2 * i + 1) / whole) for i in range(heads - whole)]
