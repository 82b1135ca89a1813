"""A pattern as a string and a list of ints: what an opaque operator can take as arguments.

Ints travel apart from the string, so that sizes may be symbols while a graph is being traced.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from typing import Any

from foveal.patterns import Pattern
from foveal.patterns.base import PATTERN_CLASSES

_SIZE = "#"
_KEPT: list[Pattern] = []
_PLACES: dict[Pattern, int] = {}


def describe(pattern: Pattern) -> tuple[str, list[int]]:
    """(text, sizes) from which `rebuild` makes an equal pattern."""
    sizes: list[int] = []
    return _text(pattern, sizes), sizes


def _text(value: Any, sizes: list[int]) -> str:
    if isinstance(value, Pattern):
        if value.opaque:
            return f"('', {_keep(value)})"
        names = value.__class__.__dataclass_fields__
        fields = [_text(getattr(value, name), sizes) for name in names]
        return f"({value.__class__.__qualname__!r}, {', '.join(fields)})"
    if isinstance(value, tuple):
        return "[" + ", ".join([_text(part, sizes) for part in value]) + "]"
    if isinstance(value, str | bool | None):
        return repr(value)
    sizes.append(value)
    return repr(_SIZE)


def _keep(pattern: Pattern) -> int:
    """The place of a pattern that text cannot describe."""
    if pattern not in _PLACES:
        _PLACES[pattern] = len(_KEPT)
        _KEPT.append(pattern)
    return _PLACES[pattern]


# what torch.compiler.assume_constant_result does, which would import the compiler (a second)
_keep._dynamo_marked_constant = True  # type: ignore[attr-defined]


def rebuild(text: str, sizes: list[int]) -> Pattern:
    """The pattern that `describe` was given."""
    return _rebuild(text, tuple(sizes))


@functools.lru_cache(maxsize=1024)
def _rebuild(text: str, sizes: tuple[int, ...]) -> Pattern:
    return _value(ast.literal_eval(text), iter(sizes))


def _value(node: Any, sizes: Iterator[int]) -> Any:
    if isinstance(node, tuple):
        name, *fields = node
        if not name:
            return _KEPT[fields[0]]
        return PATTERN_CLASSES[name].from_fields(*[_value(field, sizes) for field in fields])
    if isinstance(node, list):
        return tuple(_value(part, sizes) for part in node)
    return next(sizes) if node == _SIZE else node
