"""Patterns written as text or as tables, read without executing anything.

`SlidingWindow(window=256) | Strided(64)` and `{"name": "SlidingWindow", "window": 256}` both stand
for pattern objects; the second is what TOML and JSON can hold.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from foveal import patterns
from foveal.patterns.base import Pattern
from foveal.training.config import check_keys, nearest


def pattern_names() -> list[str]:
    """The patterns that an expression may name."""
    return sorted(
        name
        for name in patterns.__all__
        if inspect.isclass(getattr(patterns, name)) and _is_concrete(getattr(patterns, name))
    )


def _is_concrete(cls: type) -> bool:
    return issubclass(cls, Pattern) and cls is not Pattern


def parse_pattern(text: str) -> Pattern:
    """The pattern that an expression such as `SlidingWindow(window=8) | Strided(4)` stands for.

    Names of patterns, their class methods (`BlockSparse.bigbird(...)`), literals, `|` and `&` are
    understood; everything else is refused.

    Raises:
        ValueError: not such an expression, an unknown name or argument, or a refused value.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        raise ValueError(
            f"the pattern must read like SlidingWindow(window=8), got {text!r}."
        ) from None
    value = _evaluate(tree, text)
    if isinstance(value, Pattern):
        return value
    if inspect.isclass(value):
        example = inspect.signature(value)
        raise ValueError(f"the pattern {text!r} lacks its arguments: {value.__name__}{example}.")
    raise ValueError(f"the pattern must read like SlidingWindow(window=8), got {text!r}.")


def build_pattern(value: Any) -> Pattern:
    """A pattern from an expression, from a table with `name` and its arguments, or as it is."""
    if isinstance(value, Pattern):
        return value
    if isinstance(value, str):
        return parse_pattern(value)
    if isinstance(value, Mapping):
        # "pattern" is the key in the config.json of models
        arguments = {key: _nested(item) for key, item in value.items()}
        name = arguments.pop("name", None) or arguments.pop("pattern", None)
        if isinstance(name, str):
            made: Pattern = _call(_named(name), (), arguments)
            return made
    raise ValueError(
        "a pattern must be text such as 'SlidingWindow(window=8)' or a table such as "
        f"{{name = 'SlidingWindow', window = 8}}, got {value!r}."
    )


def _nested(value: Any) -> Any:
    """Tables inside a table are patterns, lists are tuples."""
    if isinstance(value, Mapping):
        return build_pattern(value)
    if isinstance(value, list):
        return tuple(map(_nested, value))
    return value


def _evaluate(node: ast.expr, text: str) -> Any:
    """The value of a small subset of Python."""
    if isinstance(node, ast.Call):
        arguments = [_evaluate(item, text) for item in node.args]
        if any(item.arg is None for item in node.keywords):
            raise ValueError(f"a pattern cannot hold ** arguments, got {text!r}.")
        keywords = {str(item.arg): _evaluate(item.value, text) for item in node.keywords}
        return _call(_evaluate(node.func, text), arguments, keywords)
    if isinstance(node, ast.Name):
        return _named(node.id)
    if isinstance(node, ast.Attribute):
        return _class_method(_evaluate(node.value, text), node.attr)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr | ast.BitAnd):
        left, right = _evaluate(node.left, text), _evaluate(node.right, text)
        if isinstance(left, Pattern) and isinstance(right, Pattern):
            return left | right if isinstance(node.op, ast.BitOr) else left & right
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError):
        part = ast.unparse(node)
        raise ValueError(f"cannot read {part!r} in the pattern {text!r}.") from None


def _named(name: str) -> Any:
    known = pattern_names()
    if name not in known:
        raise ValueError(f"unknown pattern {name!r}; {nearest(name, known)}")
    return getattr(patterns, name)


def _class_method(cls: Any, name: str) -> Any:
    makers = [key for key, value in vars(cls).items() if isinstance(value, classmethod)]
    makers = [key for key in makers if not key.startswith("_")]
    if name not in makers:
        what = getattr(cls, "__name__", repr(cls))
        raise ValueError(f"{what} has no constructor {name!r}; {nearest(name, makers)}")
    return getattr(cls, name)


def _call(maker: Callable[..., Any], arguments: Any, keywords: dict[str, Any]) -> Any:
    """Call a pattern's constructor, with its own words for arguments that do not fit."""
    if not (inspect.isclass(maker) or inspect.ismethod(maker)):
        raise ValueError(f"{maker!r} is not a pattern that takes arguments.")
    signature = inspect.signature(maker)
    name = maker.__name__
    check_keys(keywords, signature.parameters, f"{name}{signature}")
    try:
        signature.bind(*arguments, **keywords)
    except TypeError as error:
        raise ValueError(f"{name}{signature}: {error}.") from None
    try:
        return maker(*arguments, **keywords)
    except TypeError as error:
        raise ValueError(f"{name} refuses its arguments: {error}.") from None
