"""Small helpers that several packages have under the same name."""

from __future__ import annotations

from typing import Any


def exists(val: Any) -> bool:
    """Whether a value is not None."""
    return val is not None


def default(val: Any, d: Any) -> Any:
    """`val`, or `d` where it is None."""
    return d if val is None else val


def cast_tuple(val: Any, depth: int = 1) -> tuple[Any, ...]:
    """A tuple as it is, anything else `depth` times."""
    return val if isinstance(val, tuple) else (val,) * depth
