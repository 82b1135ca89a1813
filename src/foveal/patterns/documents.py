"""Documents that share a row and do not look at each other."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveal.common.memo import remember
from foveal.patterns.base import Overlap, Pattern
from foveal.patterns.full import Full
from foveal.patterns.packs import Document, pack_tiles, pairs_within
from foveal.patterns.sizes import as_lengths, lengths_between, lengths_key, refuse_more
from foveal.patterns.tiling import Tiling


@dataclass(frozen=True)
class Documents(Pattern):
    """Each token reads the tokens of its own document: a row packed with several of them.

    Composes with `&`: `Documents(lengths) & SlidingWindow(256)`. Positions are those of the row;
    for patterns that should count from 0 in every document, see `Packed`.

    A row may be longer than its documents: what lies after the last one is padding, which reads
    nothing and is read by nobody, so that a row can be filled up without one more document. A row
    that is shorter is an error, for then lengths and tokens do not belong together.

    Args:
        lengths: tokens of each document, in their order in the row; 0 is allowed. A tuple, list,
            array or tensor of ints.

    Raises:
        ValueError: a length is no int or negative; in use, the row is shorter than its documents.

    Cost: no tile holds tokens of two documents. With a pattern that depends on distances only
    (Full, SlidingWindow, Strided and what is made of them) a plan is put together from kept parts,
    in about a millisecond where they leave a band, for others tile by tile, in some tens.
    """

    lengths: tuple[int, ...]

    keeps_apart = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengths", as_lengths("lengths", self.lengths))

    @classmethod
    def from_cu_seqlens(cls, cu_seqlens: Any) -> Documents:
        """From the borders that packages of variable length take: (0, 3, 8) are 3 and 5 tokens.

        Args:
            cu_seqlens: (documents + 1,) ints, ascending from 0.

        Raises:
            ValueError: it is not of that form.
        """
        return cls(lengths_between("cu_seqlens", cu_seqlens))

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents."""
        return sum(self.lengths)

    @property
    def natural_length(self) -> int:
        return self.num_tokens

    def _contents(self) -> dict[str, Any]:
        return super()._contents() | {"lengths": lengths_key(self.lengths)}

    def documents(self) -> list[Document]:
        """Where each document stands."""
        starts = itertools.accumulate(self.lengths, initial=0)
        return [
            Document(first, first, length, length)
            for first, length in zip(starts, self.lengths, strict=False)
        ]

    def check_length(self, length: int) -> None:
        super().check_length(length)
        if length < self.num_tokens:
            raise ValueError(
                f"a row must hold all of its documents, got {length} tokens for "
                f"{len(self.lengths)} documents of {self.num_tokens} tokens in all; cut the "
                "lengths as the row was cut."
            )

    def check_lengths(self, n_queries: int, n_keys: int) -> None:
        self.check_length(n_keys)
        refuse_more(n_queries, n_keys, n_keys, "a row of documents")

    def rule(self, device: torch.device | str | None = None) -> Callable[[Tensor, Tensor], Tensor]:
        table, none = _owners(self, str(device or "cpu")), len(self.lengths)

        def allowed(q_idx: Tensor, k_idx: Tensor) -> Tensor:
            query, key = (table[x.clamp(min=0, max=len(table) - 1)] for x in (q_idx, k_idx))
            return (query == key) & (query < none)

        return allowed

    def allows(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        return Documents.rule(self, k_idx.device)(q_idx, k_idx)  # of this very class

    def overlap(self, q_first: Tensor, q_last: Tensor, k_first: Tensor, k_last: Tensor) -> Overlap:
        table, none = _owners(self, str(q_first.device)), len(self.lengths)
        edges = (q_first, q_last, k_first, k_last)
        q0, q1, k0, k1 = (table[x.clamp(min=0, max=len(table) - 1)] for x in edges)
        some = (q0 <= k1) & (k0 <= q1) & (q0 < none) & (k0 < none)
        return some, (q0 == q1) & (k0 == k1) & (q0 == k0) & (q0 < none)

    def _part(self, first: int, count: int, length: int) -> Tiling:
        return pack_tiles(Full(), self.documents(), (first, count), length, restarts=False)

    def num_pairs(self, length: int) -> int:
        return pairs_within(Full(), self.documents())

    def past(self, position: int) -> range:
        """Tokens up to `position` that later tokens of the row may still read."""
        first = 0
        for length in self.lengths:
            if position + 1 < first + length:
                return range(min(first, position + 1), position + 1)
            first += length
        return range(position + 1, position + 1)

    def horizon(self) -> tuple[int, int] | None:
        return 0, max(self.lengths, default=0)


@remember(entries=16, mebibytes=16)
def _owners(pattern: Documents, device: str) -> Tensor:
    """(tokens + 1,) number of the document of each token; after the last, one more than any."""
    numbers = torch.arange(len(pattern.lengths), dtype=torch.int32, device="cpu")
    owners = numbers.repeat_interleave(torch.tensor(pattern.lengths, device="cpu").long())
    return torch.nn.functional.pad(owners, (0, 1), value=len(pattern.lengths)).to(device)
