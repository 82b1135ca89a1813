"""What a sequence over many ranks costs to exchange, beside what others exchange: arithmetic."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from foveal.common import html
from foveal.common.checks import as_int
from foveal.common.words import in_bytes
from foveal.parallel.levels import layout_of
from foveal.parallel.shares import borders_of, cut_evenly
from foveal.patterns import Pattern
from foveal.patterns.needs import count, within

SHOWN = 16
"""Most ranks that are looked at one by one; of more, these are spread over all."""


@dataclass(frozen=True)
class Volume:
    """Bytes that a rank receives for one layer, forward; the backward pass sends as many back.

    Attributes:
        length, ranks: tokens in all, and ranks.
        tokens: most tokens that a rank receives; of a pooled pattern clusters, those of the
            summary that all ranks gather included.
        bytes: of their keys and values.
        all_gather: bytes where every rank gets all keys and values, as in a ring.
        ulysses: bytes of an all-to-all from tokens to heads and back; None where there are fewer
            heads than ranks.
        neighbors: most ranks that one rank receives from.
    """

    length: int
    ranks: int
    tokens: int
    bytes: int
    all_gather: int
    ulysses: int | None
    neighbors: int

    @property
    def share(self) -> float:
        """Part of an all-gather."""
        return self.bytes / self.all_gather if self.all_gather else 0.0

    def __str__(self) -> str:
        others = "-" if self.ulysses is None else in_bytes(self.ulysses)
        return (
            f"{self.length:,} tokens on {self.ranks} ranks: at most {self.tokens:,} tokens from "
            f"{self.neighbors} other ranks, {in_bytes(self.bytes)} a layer and direction; "
            f"all-gather {in_bytes(self.all_gather)} ({self.share:.3%}), Ulysses {others}"
        )

    def _repr_html_(self) -> str:
        """What a notebook shows: the bytes beside those of others."""
        others = self.ranks - 1
        received = [
            ("foveal", self.bytes, self.neighbors),
            ("all-gather", self.all_gather, others),
            ("Ulysses", self.ulysses, others),
        ]
        whole = self.all_gather or 1
        return html.table(
            [
                (name, in_bytes(size), html.Share(size / whole), ranks)
                for name, size, ranks in received
                if size is not None
            ],
            title=f"{self.length:,} tokens on {self.ranks} ranks",
            head=("", "received", "of an all-gather", "from ranks"),
            note=f"A layer, forward, of the rank that receives most: {self.tokens:,} tokens.",
        )


def explain(
    pattern: Pattern,
    length: int,
    ranks: int,
    *,
    heads: int = 8,
    kv_heads: int | None = None,
    head_dim: int = 64,
    batch: int = 1,
    itemsize: int = 2,
    align: int = 1,
) -> Volume:
    """Bytes that `foveal.parallel.attend` moves, without any process.

    Args:
        pattern: of the whole sequence.
        length: tokens of all ranks.
        ranks: how many share them, evenly as `take` cuts.
        heads, kv_heads, head_dim, batch: of the layer; kv_heads=None is heads.
        itemsize: bytes of a number; 2 for bfloat16.
        align: as in `take`.

    Raises:
        ValueError: a number is not positive, or a length that the pattern does not take.
    """
    if not isinstance(pattern, Pattern):
        raise ValueError(f"pattern must be a Pattern, got {type(pattern).__name__}.")
    numbers = {"length": length, "ranks": ranks, "heads": heads, "head_dim": head_dim}
    numbers |= {"kv_heads": kv_heads or heads, "batch": batch, "itemsize": itemsize}
    for name, value in numbers.items():
        as_int(name, value, 1)
    pattern.check_length(length)
    sizes = cut_evenly(length, ranks, align)
    layout = layout_of(pattern, sizes) if pattern.pools else None
    borders = layout.borders if layout else borders_of(sizes)
    queries = borders
    if not pattern.pools and (few := pattern.num_queries(length)) != length:
        queries = borders_of(cut_evenly(few, ranks))
    token = 2 * batch * (kv_heads or heads) * head_dim * itemsize
    tokens, neighbors = 0, 0
    for rank in _looked_at(ranks):
        first, last = queries[rank], queries[rank + 1]
        needs = layout.needs(rank) if layout else pattern.needs(first, last, length)
        spans = enumerate(itertools.pairwise(borders))
        others = [found for n, span in spans if n != rank and (found := within(needs, *span))]
        summary = layout.gathered(rank) if layout else 0
        tokens = max(tokens, sum(count(found) for found in others) + summary)
        neighbors = max(neighbors, ranks - 1 if summary else len(others))
    own = sizes[0]
    query = batch * heads * head_dim * itemsize
    ulysses = (2 * query + token) * own * (ranks - 1) // ranks if ranks <= heads else None
    return Volume(
        length, ranks, tokens, tokens * token, (length - own) * token, ulysses, neighbors
    )


def _looked_at(ranks: int) -> Iterable[int]:
    if ranks <= SHOWN:
        return range(ranks)
    return sorted({number * (ranks - 1) // (SHOWN - 1) for number in range(SHOWN)})
