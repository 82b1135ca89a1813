"""What a notebook shows of a decoding state: what each part holds of the past, and its bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from foveal.common import html
from foveal.common.words import in_bytes


def summary(state: Any, title: str = "decoding state") -> str:
    """A table of the caches in a state, in the order in which they run; or of one cache."""
    rows = [
        (name, type(part).__name__, repr(part.pattern), _holds(part), in_bytes(part.num_bytes))
        for name, part in _caches(state, "")
    ]
    seen = int(state.position)
    whole = f"{title} after {seen:,} tokens: {in_bytes(state.num_bytes)}"
    return html.table(rows, title=whole, head=("part", "cache", "pattern", "holds", "memory"))


def _caches(state: Any, name: str) -> Iterator[tuple[str, Any]]:
    """(place, cache) of all that hold keys for a pattern."""
    if hasattr(state, "pattern"):
        yield name or "0", state
    for number, part in enumerate(getattr(state, "parts", ())):
        yield from _caches(part, f"{name}.{number}" if name else f"{number}")


def _holds(cache: Any) -> str:
    """How much of the past is there."""
    if hasattr(cache, "levels"):
        return f"{cache.levels} levels of {cache.ring} clusters"
    if hasattr(cache, "stays"):
        seen = int(cache.position)
        return f"{len(cache.stays((0, seen), seen)):,} of {seen:,} tokens"
    return ""
