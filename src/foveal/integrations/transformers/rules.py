"""From what a mask function says to what `attend` is asked: a pattern, documents, a key mask."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from foveal.integrations.transformers.symbols import Relation, Term, read
from foveal.patterns import Documents, Full, Pattern, SlidingWindow

ALL, PAST = Full(), Full(causal=True)
_window = lru_cache(64)(SlidingWindow)
"""The same object for the same window: `attend` knows its latest calls by it."""


@dataclass(frozen=True)
class Sizes:
    """Of a mask: rows, and (first place, number) of queries and of keys."""

    batch: int
    queries: tuple[int, int]
    keys: tuple[int, int]
    device: torch.device

    @property
    def first(self) -> int:
        """The key at whose place the first query stands."""
        return self.queries[0] - self.keys[0]


@dataclass(frozen=True)
class Rule:
    """Who reads whom, as `attend` takes it.

    Args:
        patterns: one for all rows, or one a row; places count from the first key.
        first: place of the first query.
        num_keys: keys from here on are read by nobody.
        key_mask: (batch, num_keys) bool, or None.
    """

    patterns: tuple[Pattern, ...]
    first: int
    num_keys: int
    key_mask: Tensor | None = None


@dataclass(frozen=True)
class Selection:
    """The keys that the one query reads: those of [low, high) where `mask` is, (batch, keys)."""

    low: int
    high: int
    mask: Tensor | None = None


def _terms(mask_function: Callable[..., Any], sizes: Sizes) -> tuple[Term, ...]:
    """What it says; nothing where symbols are strange to it, of whatever kind its complaint is."""
    try:
        return read(mask_function, sizes.batch, sizes.queries, sizes.keys, sizes.device)
    except Exception:
        return ()


def selection_of(
    mask_function: Callable[..., Any], sizes: Sizes, padding: Tensor | None
) -> Selection | None:
    """The rule of a mask function for one query, None for one that is more than a stretch."""
    terms = _terms(mask_function, sizes)
    if len(terms) != 1 or terms[0].relations or terms[0].of_queries:
        return None
    term, first, num_keys = terms[0], sizes.first, sizes.keys[1]
    low = 0 if term.high == math.inf else max(0, first - int(term.high))
    high = num_keys if term.low == -math.inf else min(num_keys, first - int(term.low) + 1)
    if low >= high:
        return None
    return Selection(low, high, _key_mask(term, padding, sizes, low, high))


def rule_of(
    mask_function: Callable[..., Any], sizes: Sizes, padding: Tensor | None
) -> Rule | None:
    """The rule of a mask function; None for what no pattern of foveal says.

    Args:
        padding: (batch, at least all keys) bool, or None.
    """
    terms = _terms(mask_function, sizes)
    if len(terms) == 1:
        return _rule(terms[0], sizes, padding)
    return _rule_with_spans(*terms, sizes, padding) if len(terms) == 2 else None


def _rule(term: Term, sizes: Sizes, padding: Tensor | None) -> Rule | None:
    """Of pairs that are near enough, within documents."""
    if not all(bool(one.all()) for one in term.of_queries):
        return None
    breaks: Tensor | None = None
    same = [one for one in term.relations if one.name == "eq"]
    if same:
        breaks = _breaks(_joined(same), sizes)
        if breaks is None:
            return None
    for one in term.relations:
        if one.name != "eq":
            band = _band(one, breaks, sizes)
            if band is None:
                return None
            term = term.both(band)
    pattern = _pattern(term, sizes)
    if pattern is None:
        return None
    num_keys = sizes.keys[1]
    if pattern.is_causal:
        num_keys = sizes.first + sizes.queries[1]
    patterns: tuple[Pattern, ...] = (pattern,)
    if breaks is not None:
        patterns = _with_documents(pattern, breaks[:, :num_keys])
    places = breaks is not None or not pattern.reads_all
    first = sizes.first if places else 0
    return Rule(patterns, first, num_keys, _key_mask(term, padding, sizes, 0, num_keys))


def _rule_with_spans(term: Term, spans: Term, sizes: Sizes, padding: Tensor | None) -> Rule | None:
    """Of a band, and spans (those of an image) of which every token reads every other."""
    pattern = _pattern(term, sizes) if term.is_band and term.low <= 0 <= term.high else None
    breaks = _span_breaks(spans, sizes)
    if pattern is None or breaks is None:
        return None
    spans = replace(spans, relations=(), of_queries=())
    if spans.of_keys:
        return None
    lengths = _lengths(breaks)
    longest = max(max(one) for one in lengths)
    if spans.high < longest - 1 or spans.low > 1 - longest:
        return None
    patterns = tuple(pattern | Documents(one) for one in lengths)
    key_mask = _key_mask(term, padding, sizes, 0, sizes.keys[1])
    return Rule(_one_for_all(patterns), sizes.first, sizes.keys[1], key_mask)


def _pattern(term: Term, sizes: Sizes) -> Pattern | None:
    """The pattern of distances low ... high."""
    low, high, first = term.low, term.high, sizes.first
    least, most = first - sizes.keys[1] + 1, first + sizes.queries[1] - 1
    if low <= least and high >= most:
        return ALL
    if first < 0 or most >= sizes.keys[1]:  # queries that are no keys
        return None
    if low == 0:
        return PAST if high >= most else _window(int(high) + 1, causal=True)
    for reach in (high, -low):  # a limit may be anything beyond the distances that occur
        below = low == -reach or max(low, -reach) <= least
        if reach >= 0 and below and (high == reach or min(high, reach) >= most):
            return _window(int(reach) + 1, causal=False)
    return None


def _key_mask(
    term: Term, padding: Tensor | None, sizes: Sizes, low: int, high: int
) -> Tensor | None:
    """(batch, high - low) bool, None where all of these keys are real."""
    first = sizes.keys[0]
    masks = [one.expand(sizes.batch, sizes.keys[1])[:, low:high] for one in term.of_keys]
    if padding is not None:
        masks.append(padding[:, first + low : first + high].expand(sizes.batch, -1))
    found: Tensor | None = None
    for mask in masks:
        if not bool(mask.all()):
            found = mask if found is None else found & mask
    return found


# -- documents ----------------------------------------------------------------------------------


def _joined(relations: list[Relation]) -> Relation:
    """One of which entries are equal where those of all are."""
    queries, keys = relations[0].queries, relations[0].keys
    for one in relations[1:]:
        least = torch.minimum(one.queries.min(), one.keys.min())
        count = torch.maximum(one.queries.max(), one.keys.max()) - least + 1
        queries = queries * count + (one.queries - least)
        keys = keys * count + (one.keys - least)
    return Relation("eq", queries, keys)


def _breaks(relation: Relation, sizes: Sizes) -> Tensor | None:
    """(batch or 1, num_keys) bool: the keys with which another document begins.

    None where equal entries are not those of one stretch, the same for queries and keys.
    """
    keys, first, count = relation.keys, sizes.first, sizes.queries[1]
    own = keys[:, first : first + count] if first >= 0 else keys[:, :0]
    if keys.shape[1] != sizes.keys[1] or own.shape[1] != count:
        return None
    if not bool((own == relation.queries).all()):
        return None
    breaks = keys[:, 1:] != keys[:, :-1]
    ordered = keys.sort(-1).values
    distinct = (ordered[:, 1:] != ordered[:, :-1]).sum(-1)
    if not bool((breaks.sum(-1) == distinct).all()):
        return None
    return torch.nn.functional.pad(breaks, (1, 0), value=True)


def _band(relation: Relation, breaks: Tensor | None, sizes: Sizes) -> Term | None:
    """Entries that count the places of each document, compared: a band within documents."""
    queries, keys, first = relation.queries, relation.keys, sizes.first
    if breaks is None or keys.shape[1] != sizes.keys[1]:
        return None
    if not bool((breaks[:, 1:] | (keys.diff(dim=-1) == 1)).all()):
        return None
    shift = queries - keys[:, first : first + queries.shape[1]]
    least, most = shift.aminmax()
    if least != most:
        return None
    edge = -int(least)  # query - key + shift < 0, and the like
    limits = {
        "lt": (-math.inf, edge - 1),
        "le": (-math.inf, edge),
        "gt": (edge + 1, math.inf),
        "ge": (edge, math.inf),
    }
    return Term(*limits[relation.name]) if relation.name in limits else None


def _span_breaks(term: Term, sizes: Sizes) -> Tensor | None:
    """(batch, num_keys) bool: where a span begins, or a token that is in none."""
    if len(term.relations) != 1 or len(term.of_queries) != 1 or term.relations[0].name != "eq":
        return None
    keys = term.relations[0].keys.expand(sizes.batch, -1)
    queries = term.relations[0].queries.expand(sizes.batch, -1)
    inside = term.of_queries[0].expand(sizes.batch, -1)
    first, stop = sizes.first, sizes.first + sizes.queries[1]
    if first < 0 or stop > sizes.keys[1] or not bool((queries == keys[:, first:stop]).all()):
        return None
    # tokens of no span get numbers of their own, which no other token has
    alone = keys.min() - 1 - torch.arange(sizes.keys[1], device=keys.device)
    numbers = alone.repeat(sizes.batch, 1)
    numbers[:, first:stop] = torch.where(inside, queries, numbers[:, first:stop])
    outside = torch.cat([keys[:, :first], keys[:, stop:]], 1)
    for row in range(sizes.batch):  # a span that goes on where there are no queries
        if bool(torch.isin(outside[row], queries[row][inside[row]]).any()):
            return None
    return _breaks(Relation("eq", numbers[:, first:stop], numbers), sizes)


def _with_documents(pattern: Pattern, breaks: Tensor) -> tuple[Pattern, ...]:
    """The pattern within the documents of each row."""
    each = [pattern if len(one) == 1 else Documents(one) & pattern for one in _lengths(breaks)]
    return _one_for_all(tuple(each))


def _lengths(breaks: Tensor) -> list[tuple[int, ...]]:
    """Of the documents of each row."""
    length = breaks.shape[1]
    rows = [row.nonzero()[:, 0].tolist() for row in breaks.cpu()]
    return [
        tuple(b - a for a, b in zip(starts, [*starts[1:], length], strict=True)) for starts in rows
    ]


def _one_for_all(patterns: tuple[Pattern, ...]) -> tuple[Pattern, ...]:
    """One pattern where it is that of every row."""
    return patterns[:1] if all(one == patterns[0] for one in patterns[1:]) else patterns
