"""What the page shows of a pattern, as lists: everything is asked of the pattern itself.

Positions are written as runs, [low, high, low, high, ...]: `high` is the first beyond each.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from foveal.common.words import shorten
from foveal.draw.patterns import Canvas, own_key, shown_canvas
from foveal.explore.families import MOST_TOKENS, Family
from foveal.ops.costs import visited_pairs
from foveal.parallel.shares import cut_evenly
from foveal.patterns import Pattern
from foveal.patterns.needs import Stretches, runs_in, together

MOST_HEADS = 8
RANKS = (2, 4, 8)
HEAD_DIM = 64

Runs = list[int]


def table(family: Family, choice: dict[str, str]) -> dict[str, Any]:
    """The table of a choice; only an "error" where its values do not go together."""
    try:
        pattern, length = family.pattern(choice)
    except ValueError as error:
        return {"error": shorten(str(error))}
    return {"text": family.named(choice), **describe(pattern, length)}


def describe(pattern: Pattern, length: int) -> dict[str, Any]:
    """Everything about a pattern at a length.

    Raises:
        ValueError: there are no tokens, or more than can be shown, or the length does not suit.
    """
    if not 1 <= length <= MOST_TOKENS:
        raise ValueError(
            f"length must be between 1 and {MOST_TOKENS:,} to be explored, got {length=}."
        )
    pattern.check_length(length)
    queries = pattern.num_queries(length)
    canvas = shown_canvas(pattern, length)
    return {
        "length": length,
        "queries": queries,
        "causal": pattern.is_causal,
        "pools": pattern.pools,
        "heads": [_head(one, length) for one in pattern.per_head()[:MOST_HEADS]],
        "numHeads": pattern.heads or 1,
        "pairs": pattern.num_pairs(length),
        "visited": visited_pairs(pattern, queries, length) * (pattern.heads or 1),
        "keeps": _keeps(pattern, length),
        "needs": _needs(pattern, length),
        "canvas": canvas and _canvas(canvas),
        "ownKeys": [own_key(pattern, one) for one in range(queries)]
        if queries != length and canvas is not None
        else None,
    }


def flat(runs: Iterable[tuple[int, int]]) -> Runs:
    """(low, high), ... in one list."""
    return list(itertools.chain.from_iterable(runs))


def _canvas(canvas: Canvas) -> dict[str, int]:
    return {
        "frames": canvas.frames,
        "height": canvas.height,
        "width": canvas.width,
        "text": canvas.text,
    }


# -- who reads whom ---------------------------------------------------------------------------


def _head(pattern: Pattern, length: int) -> dict[str, Any]:
    """Rows of one head, the levels of their runs where keys are pooled, and the tiles."""
    queries = pattern.num_queries(length)
    allowed = pattern.mask(queries, length)
    if not pattern.pools:
        rows, _ = _rows(allowed.long())
        return {"rows": rows, "tiles": _tiles(pattern, length)}
    q, k = torch.arange(queries)[:, None], torch.arange(length)[None]
    rows, codes = _rows(torch.where(allowed, pattern.level(q, k) + 1, 0))
    levels = [[code - 1 for code in row] for row in codes]
    return {"rows": rows, "levels": levels, "tiles": None}


def _rows(codes: Tensor) -> tuple[list[Runs], list[list[int]]]:
    """Runs of equal codes above 0 in each row, and the code of each run; codes (rows, columns)."""
    padded = torch.nn.functional.pad(codes, (1, 1))
    row, low = (padded.diff(dim=1) != 0).nonzero().unbind(1)
    code = padded[row, low + 1]
    # a run ends where the next change in its row stands
    ends = torch.cat([low[1:], low[:1]])
    runs: list[Runs] = [[] for _ in codes]
    kinds: list[list[int]] = [[] for _ in codes]
    found = (one.tolist() for one in (row, low, ends, code))
    for at, first, end, kind in zip(*found, strict=True):
        if kind:
            runs[at] += [first, end]
            kinds[at].append(kind)
    return runs, kinds


def _tiles(pattern: Pattern, length: int) -> list[list[Runs]]:
    """[queries, keys] of each tile of the plan."""
    found = []
    for group in pattern.tiles(length).groups:
        queries, keys = group.queries.index(), group.key_index()
        for number in range(group.num_tiles):
            found.append([flat(runs_in(queries[number])), flat(runs_in(keys[number]))])
    return found


# -- what is kept, and fetched ----------------------------------------------------------------


def _keeps(pattern: Pattern, length: int) -> dict[str, Any] | None:
    """What a cache holds after each position from `first` on, for the tokens to come."""
    first = pattern.decodes_from
    if first is None or first > length or not pattern.counts_tokens(length):
        return None
    first = max(0, first - 1)
    return {"first": first, "runs": [_kept(pattern, at) for at in range(first, length)]}


def _kept(pattern: Pattern, position: int) -> Runs:
    kept = pattern.keeps(position)
    if isinstance(kept, range):
        return [kept.start, kept.stop] if kept else []
    return flat(runs_in(kept))


def _needs(pattern: Pattern, length: int) -> dict[str, list[list[Runs]]] | None:
    """For each number of ranks, [own tokens, keys that their queries read] of each rank."""
    if not pattern.counts_tokens(length):
        return None
    return {
        str(ranks): [
            [list(part), flat(needs(pattern, *part, length))] for part in shards(length, ranks)
        ]
        for ranks in RANKS
        if ranks <= length
    }


def shards(length: int, ranks: int) -> list[tuple[int, int]]:
    """First token of each rank, and the first beyond it."""
    return list(itertools.pairwise(itertools.accumulate(cut_evenly(length, ranks), initial=0)))


def needs(pattern: Pattern, low: int, high: int, length: int) -> Stretches:
    """`pattern.needs`, of parts of 8 ranks put together: fewer ranks have several of those."""
    parts = [part for part in shards(length, RANKS[-1]) if low <= part[0] and part[1] <= high]
    return together(pattern.needs(*part, length) for part in parts)
