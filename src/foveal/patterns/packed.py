"""A pattern in each document of a packed row, from its own first token on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveal.common.memo import remember
from foveal.patterns.base import HeadMask, Overlap, Pattern
from foveal.patterns.offsets import Codes
from foveal.patterns.packs import Document, pack_tiles, pairs_within
from foveal.patterns.sizes import as_lengths, lengths_key, refuse_more
from foveal.patterns.tiling import Tiling


@dataclass(frozen=True)
class Packed(Pattern):
    """Each document of a row by itself: a pattern that counts from 0 in every one of them.

    What a batch of the documents would compute, without padding; `attend_varlen` makes it of
    `cu_seqlens`. For patterns that depend on distances only it is `Documents(lengths) & pattern`.

    Args:
        pattern: who reads whom within a document.
        lengths: tokens (keys) of each document, in their order in the row; 0 is allowed.
        query_lengths: queries of each document; None: as many as the pattern has for its keys.
            Others are the last ones of their document, and where there are more of them than
            keys, the first stand before all keys.

    Raises:
        ValueError: pattern is none, or one whose keys are pooled; lengths that are no ints, that
            differ in number, or that do not suit the pattern; in use, a row of another length.
    """

    pattern: Pattern
    lengths: tuple[int, ...]
    query_lengths: tuple[int, ...] | None = None

    keeps_apart = True

    def __post_init__(self) -> None:
        _check_pattern(self.pattern)
        object.__setattr__(self, "lengths", as_lengths("lengths", self.lengths))
        if self.query_lengths is not None:
            given = as_lengths("query_lengths", self.query_lengths)
            object.__setattr__(self, "query_lengths", given)
            if len(given) != len(self.lengths):
                raise ValueError(
                    "lengths and query_lengths must name as many documents, got "
                    f"{len(self.lengths)} and {len(given)}."
                )
        for length in set(self.lengths):
            self.pattern.check_length(length)
        for one in set(self.documents()):
            if one.place < 0 and one.num_keys and self.pattern.period != 1:
                raise ValueError(
                    f"{self.pattern} has {one.num_queries + one.place} queries for the "
                    f"{one.num_keys} keys of a document, got {one.num_queries}."
                )

    def _contents(self) -> dict[str, Any]:
        queries = None if self.query_lengths is None else lengths_key(self.query_lengths)
        own = {"lengths": lengths_key(self.lengths), "query_lengths": queries}
        return super()._contents() | own

    def documents(self) -> list[Document]:
        """Where each document stands."""
        found, query, key = [], 0, 0
        for number, length in enumerate(self.lengths):
            all_queries = self.pattern.num_queries(length)
            count = all_queries if self.query_lengths is None else self.query_lengths[number]
            found.append(Document(query, key, count, length, all_queries - count))
            query, key = query + count, key + length
        return found

    @property
    def is_causal(self) -> bool:
        return self.query_lengths is None and self.pattern.is_causal

    @property
    def always_reads(self) -> bool:  # type: ignore[override]
        return self.query_lengths is None and self.pattern.always_reads

    @property
    def heads(self) -> int | None:
        return self.pattern.heads

    def per_head(self) -> tuple[Pattern, ...]:
        if self.heads is None:
            return (self,)
        parts = self.pattern.per_head()
        return tuple(Packed(one, self.lengths, self.query_lengths) for one in parts)

    def in_head(self, device: torch.device | str | None = None) -> HeadMask:
        allowed, places = self.pattern.in_head(device), _places(self, str(device or "cpu"))

        def in_document(head: Tensor, q_idx: Tensor, k_idx: Tensor) -> Tensor:
            query, key, together = places(q_idx, k_idx)
            return together & allowed(head, query, key)

        return in_document

    @property
    def natural_length(self) -> int:
        return sum(self.lengths)

    def check_length(self, length: int) -> None:
        keys = sum(self.lengths)
        if length != keys:
            raise ValueError(
                f"a packed row must be as long as its {len(self.lengths)} documents of {keys} "
                f"tokens in all, got {length} tokens."
            )

    def check_lengths(self, n_queries: int, n_keys: int) -> None:
        self.check_length(n_keys)
        row = f"a packed row of {len(self.lengths)} documents"
        refuse_more(n_queries, self.num_queries(n_keys), n_keys, row)

    def num_queries(self, n_keys: int) -> int:
        return sum(one.num_queries for one in self.documents())

    # -- biases: those of the pattern, which counts from 0 in every document ------------------

    def tokens(self, q_idx: Tensor, k_idx: Tensor) -> tuple[Tensor, Tensor]:
        places = _places(self, str(k_idx.device))
        return self.pattern.tokens(places.within(0, q_idx), places.within(1, k_idx))

    def counts_tokens(self, n_keys: int) -> bool:
        return all(self.pattern.counts_tokens(length) for length in set(self.lengths))

    def farthest(self, n_queries: int, n_keys: int, first: int = 0, skipped: int = 0) -> int:
        return max([1] + [one.extent for one in self.documents()])

    @property
    def bias_size(self) -> int | None:
        return self.pattern.bias_size

    @property
    def biased_by_table(self) -> bool:  # type: ignore[override]
        return self.pattern.biased_by_table

    def bias_place(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        places = _places(self, str(k_idx.device))
        return self.pattern.bias_place(places.within(0, q_idx), places.within(1, k_idx))

    @property
    def has_offset_codes(self) -> bool:
        before_all = any(one.place < 0 for one in self.documents())
        return self.pattern.has_offset_codes and not before_all

    def offset_codes(self, n_queries: int, n_keys: int) -> Codes:
        places = _places(self, "cpu")
        query, key = (
            places.within(side, torch.arange(count, device="cpu"))
            for side, count in enumerate((n_queries, n_keys))
        )
        lengths = (int(one.max()) + 1 if len(one) else 0 for one in (query, key))
        queries, keys, rows = self.pattern.offset_codes(*lengths)
        return Codes(queries[query], keys[key], rows)

    # -- definition ---------------------------------------------------------------------------

    def rule(self, device: torch.device | str | None = None) -> Callable[[Tensor, Tensor], Tensor]:
        allowed, places = self.pattern.rule(device), _places(self, str(device or "cpu"))

        def in_document(q_idx: Tensor, k_idx: Tensor) -> Tensor:
            query, key, together = places(q_idx, k_idx)
            return together & allowed(query, key)

        return in_document

    def allows(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        return Packed.rule(self, k_idx.device)(q_idx, k_idx)  # of this very class

    def overlap(self, q_first: Tensor, q_last: Tensor, k_first: Tensor, k_last: Tensor) -> Overlap:
        places = _places(self, str(q_first.device))
        q0, k0, first = places(q_first, k_first)
        q1, k1, last = places(q_last, k_last)
        query, key = places.owners
        together = first & last & (query[q_first] == query[q_last])
        some, every = self.pattern.overlap(
            *(torch.where(together, x, x.new_zeros(())) for x in (q0, q1, k0, k1))
        )
        # stretches that reach over several documents may hold anything
        near = (query[q_first] <= key[k_last]) & (key[k_first] <= query[q_last])
        return torch.where(together, some, near), together & every

    def _part(self, first: int, count: int, length: int) -> Tiling:
        return pack_tiles(self.pattern, self.documents(), (first, count), length, restarts=True)

    def num_pairs(self, length: int) -> int:
        if self.query_lengths is not None:
            return super().num_pairs(length)
        return pairs_within(self.pattern, self.documents())

    # -- decoding -----------------------------------------------------------------------------

    def _document(self, position: int) -> Document:
        for one in self.documents():
            if position < one.key + one.num_keys:
                return one
        raise ValueError(
            f"position must lie in one of the documents of {sum(self.lengths)} tokens in all, "
            f"got {position}."
        )

    def reads(self, position: int) -> Tensor:
        self._require_causal("reads")
        one = self._document(position)
        return self.pattern.reads(position - one.key) + one.key

    def keeps(self, position: int) -> range | Tensor:
        self._require_causal("keeps")
        one = self._document(position)
        if position + 1 == one.key + one.num_keys:
            return range(position + 1, position + 1)
        kept = self.pattern.keeps(position - one.key)
        if isinstance(kept, range):
            return range(kept.start + one.key, kept.stop + one.key)
        return kept + one.key

    def horizon(self) -> tuple[int, int] | None:
        return (0, max(self.lengths, default=0)) if self.is_causal else None


def _check_pattern(pattern: Any) -> None:
    if not isinstance(pattern, Pattern):
        raise ValueError(f"pattern must be a Pattern, got {pattern!r}.")
    if pattern.pools:
        raise ValueError(
            f"pattern must read keys one by one to be packed, got {pattern}, which pools them; "
            "call attend for each document."
        )


@dataclass(frozen=True, eq=False)
class _Places:
    """Which document a position belongs to, and where it stands there.

    owners: of queries (queries,) and of keys (keys,).
    shifts: what to take away from a position of a query, and of a key: (documents,) each.
    """

    owners: tuple[Tensor, Tensor]
    shifts: tuple[Tensor, Tensor]

    def within(self, side: int, index: Tensor) -> Tensor:
        """Places of queries (side 0) or keys (side 1), of any shape, in their documents."""
        return index - self.shifts[side][self.owners[side][index]]

    def __call__(self, q_idx: Tensor, k_idx: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Places of queries and keys in their documents, and whether these are the same."""
        query, key = self.owners[0][q_idx], self.owners[1][k_idx]
        return q_idx - self.shifts[0][query], k_idx - self.shifts[1][key], query == key


@remember(entries=16, mebibytes=16)
def _places(pattern: Packed, device: str) -> _Places:
    documents = pattern.documents()

    def numbers(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device="cpu")

    def owners(counts: list[int]) -> Tensor:
        return torch.arange(len(counts), device="cpu").repeat_interleave(numbers(counts))

    return _Places(
        (
            owners([one.num_queries for one in documents]).to(device),
            owners([one.num_keys for one in documents]).to(device),
        ),
        (
            numbers([one.query - one.place for one in documents]).to(device),
            numbers([one.key for one in documents]).to(device),
        ),
    )
