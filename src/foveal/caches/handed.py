"""Caches that are filled with what several ranks have of a sequence: each hands over its part.

A rank hands over what the cache of the whole would keep of its tokens, and no more: the last keys
of a window, sums of clusters, the last rows of a shift. Who fills the cache knows the sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from foveal.caches.attention import AttentionCache
from foveal.caches.pyramid import PyramidCache
from foveal.caches.state import DecodingState
from foveal.ops.pooling import pairs

Span = tuple[int, int]


class Slot(Protocol):
    """One cache of a model, and what it wants of tokens [first, last) of `length`.

    Attributes:
        dtype: of what is stored.
    """

    dtype: torch.dtype

    def count(self, span: Span, length: int) -> int:
        """How many numbers that is."""

    def give(self, span: Span, length: int, *found: Tensor) -> Tensor:
        """These numbers (count,), of what a layer found for the tokens of `span`."""

    def fill(self, parts: Sequence[Tensor], spans: Sequence[Span], length: int) -> None:
        """Load the empty cache with what each rank gave: parts (count,) each."""


class KeySlot:
    """An AttentionCache: keys and values that later tokens can read; found are q, k, v."""

    def __init__(self, cache: AttentionCache) -> None:
        self._cache, self.dtype = cache, cache.dtype

    def count(self, span: Span, length: int) -> int:
        batch, kv_heads, head_dim = self._cache.sizes
        return 2 * batch * kv_heads * head_dim * len(self._cache.stays(span, length))

    def give(self, span: Span, length: int, *found: Tensor) -> Tensor:
        """found: q, k, v (batch, heads or kv_heads, tokens, head_dim)."""
        kv = torch.stack(found[1:])
        stays = self._cache.stays(span, length).to(kv.device)
        return kv.index_select(3, stays - span[0]).to(self.dtype).flatten()

    def fill(self, parts: Sequence[Tensor], spans: Sequence[Span], length: int) -> None:
        """parts: (numbers,) of each rank."""
        batch, kv_heads, head_dim = self._cache.sizes
        kv = [part.view(2, batch, kv_heads, -1, head_dim) for part in parts if len(part)]
        self._cache.load(torch.cat(kv, 3), length)


class ClusterSlot:
    """A PyramidCache: clusters that later tokens can read; found are q, k, v.

    A cluster may lie on several ranks, of which each gives the sum of its tokens.
    """

    def __init__(self, cache: PyramidCache) -> None:
        self._cache, self.dtype = cache, cache.data.dtype

    def count(self, span: Span, length: int) -> int:
        _, batch, kv_heads, _, _, head_dim = self._cache.data.shape
        clusters = sum(high - low for low, high in self._runs(span, length))
        queries = len(self._queries(span, length)) * self._cache.queries.shape[1]
        return batch * head_dim * (2 * kv_heads * clusters + queries)

    def give(self, span: Span, length: int, *found: Tensor) -> Tensor:
        """found: q, k, v (batch, heads or kv_heads, tokens, head_dim)."""
        (first, last), pieces = span, []
        sums = torch.stack(found[1:])
        for level, (low, high) in enumerate(self._runs(span, length)):
            if level:
                sums = _halves_added(sums, first, last)
                first, last = first >> 1, -(-last // 2)
            share = sums[:, :, :, low - first : high - first] if high > low else sums[..., :0, :]
            pieces.append(share / (1 << level))
        places = torch.tensor(self._queries(span, length), device=sums.device, dtype=torch.long)
        pieces.append(found[0].index_select(2, places - span[0]))
        return torch.cat([piece.flatten() for piece in pieces]).to(self.dtype)

    def fill(self, parts: Sequence[Tensor], spans: Sequence[Span], length: int) -> None:
        """parts: (numbers,) of each rank."""
        _, batch, kv_heads, _, _, head_dim = self._cache.data.shape
        whole = self._runs((0, length), length)
        shape = (2, batch, kv_heads, -1, head_dim)
        sums = [parts[0].new_zeros(2, batch, kv_heads, b - a, head_dim) for a, b in whole]
        queries = []
        for part, span in zip(parts, spans, strict=True):
            runs = self._runs(span, length)
            sizes = [2 * batch * kv_heads * head_dim * (b - a) for a, b in runs]
            *pieces, rest = part.split([*sizes, len(part) - sum(sizes)])
            for total, piece, (low, high), (start, _) in zip(
                sums, pieces, runs, whole, strict=True
            ):
                if high > low:
                    total[:, :, :, low - start : high - start] += piece.view(shape)
            count = len(self._queries(span, length))
            queries.append(rest.view(batch, self._cache.queries.shape[1], count, head_dim))
        newest = self._queries((0, length), length)
        at = [newest.index(one) for one in self._starts(length)]
        self._cache.load(sums, torch.cat(queries, 2)[:, :, at], length)

    def _runs(self, span: Span, length: int) -> list[Span]:
        """Of each level the clusters that are kept and hold tokens of the span."""
        found = []
        for level, (low, high) in enumerate(self._cache.kept_clusters(length)):
            first, last = span[0] >> level, -(-span[1] // (1 << level))
            run = max(first, low), min(last, high)
            found.append(run if span[0] < span[1] and run[0] < run[1] else (low, low))
        return found

    def _starts(self, length: int) -> list[int]:
        """Of each level with a query of its own, the token whose query it is."""
        if self._cache.pattern.queries != "coarse":
            return []
        levels = len(self._cache.kept_clusters(length))
        return [(length - 1) >> level << level for level in range(levels)]

    def _queries(self, span: Span, length: int) -> list[int]:
        """Those of them in the span, ascending, each once."""
        return sorted({one for one in self._starts(length) if span[0] <= one < span[1]})


class RowSlot:
    """The state of a token shift: features of the last tokens; found are the features."""

    def __init__(self, state: DecodingState) -> None:
        self._state, self.dtype = state, state.tensors["rows"].dtype

    def _stays(self, span: Span, length: int) -> range:
        reach = self._state.tensors["rows"].shape[1]
        return range(max(span[0], length - reach), span[1])

    def count(self, span: Span, length: int) -> int:
        batch, _, kept = self._state.tensors["rows"].shape
        return batch * kept * len(self._stays(span, length))

    def give(self, span: Span, length: int, *found: Tensor) -> Tensor:
        """found: x (batch, tokens, features that are handed on)."""
        stays = self._stays(span, length)
        return found[0][:, found[0].shape[1] - len(stays) :].to(self.dtype).flatten()

    def fill(self, parts: Sequence[Tensor], spans: Sequence[Span], length: int) -> None:
        """parts: (numbers,) of each rank."""
        rows, stays = self._state.tensors["rows"], self._stays((0, length), length)
        batch, reach, kept = rows.shape
        found = torch.cat([part.view(batch, -1, kept) for part in parts if len(part)], 1)
        rows[:, torch.tensor(stays, device=rows.device) % reach] = found
        self._state.position = length


def slots_of(state: Any) -> Iterator[Slot]:
    """The caches of a decoding state, in the order in which a model's layers reach them.

    Raises:
        ValueError: there is one of another kind.
    """
    if isinstance(state, AttentionCache):
        yield KeySlot(state)
    elif isinstance(state, PyramidCache):
        yield ClusterSlot(state)
    elif isinstance(state, DecodingState) and set(state.tensors) == {"rows"} and not state.parts:
        yield RowSlot(state)
    elif isinstance(state, DecodingState) and not state.tensors:
        for part in state.parts:
            if part is not None:
                yield from slots_of(part)
    else:
        raise ValueError(f"a {type(state).__name__} is not filled by several ranks.")


def _halves_added(x: Tensor, first: int, last: int) -> Tensor:
    """Sums (..., last - first, features) of clusters [first, last) -> of those twice as large."""
    padded = torch.nn.functional.pad(x, (0, 0, first % 2, last % 2))
    return pairs(padded, padded.ndim - 2).sum(-2)
