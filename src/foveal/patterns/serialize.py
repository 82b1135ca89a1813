"""Patterns as plain data (JSON, TOML) and as text a person types; both ways are safe to read."""

from __future__ import annotations

import ast
import base64
import dataclasses
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from foveal.common.words import meant
from foveal.patterns.base import Pattern

_BITS = 1 << torch.arange(7, -1, -1, device="cpu")  # whatever device is the default then


def known_patterns() -> dict[str, type[Pattern]]:
    """Pattern classes by name: those of foveal, and subclasses of Pattern defined elsewhere."""
    import foveal.patterns  # noqa: F401  (defines the classes)

    found: dict[str, type[Pattern]] = {}
    todo = list(Pattern.__subclasses__())
    while todo:
        one = todo.pop()
        todo.extend(one.__subclasses__())
        ours = one.__module__.startswith("foveal.")
        if _is_complete(one) and (ours or one.__name__ not in found):
            found[one.__name__] = one
    return dict(sorted(found.items()))


def _is_complete(cls: type[Pattern]) -> bool:
    return cls.allows is not Pattern.allows and not cls.__name__.startswith("_")


# -- plain data ---------------------------------------------------------------------------------


def to_config(pattern: Pattern) -> dict[str, Any]:
    """A pattern as a dict of plain values: {"name": "SlidingWindow", "window": 8, "causal": true}.

    Nested patterns become nested dicts, tuples lists, and layouts {"shape": ..., "bits": ...}
    with the bits packed in base64. `from_config` gives back an equal pattern.

    Raises:
        ValueError: pattern is not a Pattern, or holds a value that has no plain form.
    """
    if not isinstance(pattern, Pattern):
        raise ValueError(f"pattern must be a Pattern, got {pattern!r}.")
    fields = {name: _plain(getattr(pattern, name)) for name in _fields(type(pattern))}
    return {"name": type(pattern).__name__, **fields}


def from_config(config: dict[str, Any]) -> Pattern:
    """The pattern that `to_config` described.

    Raises:
        ValueError: unknown name or field (the nearest known one is suggested), or a missing one.
    """
    if not isinstance(config, dict) or "name" not in config:
        raise ValueError(f"a pattern must be a dict with a 'name', got {config!r}.")
    cls = _find(config["name"])
    values = {key: _rich(value) for key, value in config.items() if key != "name"}
    _check_fields(cls.__name__, values, _fields(cls))
    if set(values) == {"parts"}:  # unions and intersections take them by position
        return _build(cls.__name__, cls, values["parts"], {})
    return _build(cls.__name__, cls, (), values)


def _plain(value: Any) -> Any:
    if isinstance(value, Pattern):
        return to_config(value)
    if isinstance(value, Tensor):
        return _pack(value)
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"a pattern's field must be plain, a layout or a pattern, got {value!r}.")


def _rich(value: Any) -> Any:
    if isinstance(value, dict):
        return _unpack(value) if "bits" in value else from_config(value)
    return tuple(_rich(one) for one in value) if isinstance(value, list | tuple) else value


def _pack(layout: Tensor) -> dict[str, Any]:
    bits = layout.bool().cpu().flatten()
    padded = torch.nn.functional.pad(bits.long(), (0, -len(bits) % 8)).reshape(-1, 8)
    packed = bytes((padded * _BITS).sum(1).tolist())
    return {"shape": list(layout.shape), "bits": base64.b64encode(packed).decode()}


def _unpack(packed: dict[str, Any]) -> Tensor:
    shape = tuple(packed.get("shape", ()))
    count = int(torch.tensor(shape).prod())
    content = base64.b64decode(packed["bits"])
    if len(content) != -(-count // 8):
        raise ValueError(
            f"bits must hold {-(-count // 8)} bytes for shape {shape}, got {len(content)} bytes."
        )
    values = torch.tensor(list(content), dtype=torch.long)[:, None] & _BITS
    return values.bool().flatten()[:count].reshape(shape)


# -- text ---------------------------------------------------------------------------------------


def parse(text: str) -> Pattern:
    """The pattern that a piece of text names, as one would write it in Python.

    Calls of pattern classes and of their class methods, with ints, bools, None, strings, tuples,
    lists and patterns as arguments, and `|` and `&` between patterns; nothing else is looked at,
    and nothing is executed but constructors of patterns.

    >>> parse("TextImage(16, Axial((8, 8), causal=True)) | SlidingWindow(window=4)").causal
    True

    Raises:
        ValueError: the text is not of that form, or names an unknown pattern or argument.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except SyntaxError as error:
        raise ValueError(
            f"a pattern must read like SlidingWindow(window=8), got {text!r} ({error.msg})."
        ) from None
    pattern = _evaluate(tree.body, text)
    if not isinstance(pattern, Pattern):
        raise ValueError(f"a pattern must read like SlidingWindow(window=8), got {text!r}.")
    return pattern


def _evaluate(node: ast.expr, text: str) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float | str | None):
        return node.value
    if isinstance(node, ast.Tuple | ast.List):
        return tuple(_evaluate(one, text) for one in node.elts)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        number = _evaluate(node.operand, text)
        if isinstance(number, int | float):
            return -number
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr | ast.BitAnd):
        left, right = _evaluate(node.left, text), _evaluate(node.right, text)
        if isinstance(left, Pattern) and isinstance(right, Pattern):
            return left | right if isinstance(node.op, ast.BitOr) else left & right
    if isinstance(node, ast.Call):
        return _call(node, text)
    raise ValueError(
        f"only pattern names, numbers, strings, tuples, | and & may stand in a pattern, got "
        f"{ast.unparse(node)!r} in {text!r}."
    )


def _call(node: ast.Call, text: str) -> Any:
    name, build = _callee(node.func, text)
    if any(isinstance(one, ast.Starred) for one in node.args) or not all(
        keyword.arg for keyword in node.keywords
    ):
        raise ValueError(f"* and ** may not stand in a pattern, got {text!r}.")
    values = {str(keyword.arg): _evaluate(keyword.value, text) for keyword in node.keywords}
    return _build(name, build, [_evaluate(one, text) for one in node.args], values)


def _callee(node: ast.expr, text: str) -> tuple[str, Callable[..., Any]]:
    """A pattern class, or one of its public class methods such as BlockSparse.fixed."""
    if isinstance(node, ast.Name):
        return node.id, _find(node.id)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        cls, method = _find(node.value.id), node.attr
        known = [name for name, member in vars(cls).items() if isinstance(member, classmethod)]
        if method in known and not method.startswith("_"):
            return f"{cls.__name__}.{method}", getattr(cls, method)
        raise ValueError(
            f"{cls.__name__} has no constructor {method!r}{_hint(method, known)} (in {text!r})."
        )
    raise ValueError(f"a pattern must begin with its name, got {ast.unparse(node)!r} in {text!r}.")


# -- shared -------------------------------------------------------------------------------------


def _find(name: Any) -> type[Pattern]:
    known = known_patterns()
    if name not in known:
        raise ValueError(
            f"unknown pattern {name!r}{_hint(str(name), known)}; known are {', '.join(known)}."
        )
    return known[name]


def _build(
    name: str, build: Callable[..., Any], args: Sequence[Any], values: dict[str, Any]
) -> Pattern:
    signature = inspect.signature(build)
    if not any(p.kind is p.VAR_POSITIONAL for p in signature.parameters.values()):
        _check_fields(name, values, list(signature.parameters))
    try:
        signature.bind(*args, **values)
    except TypeError as error:
        raise ValueError(f"{name}{signature}: {error}.".replace(" -> None", "")) from None
    try:
        return build(*args, **values)
    except TypeError as error:  # a value of a kind that the pattern cannot even compare
        given = ", ".join([*map(repr, args), *(f"{k}={v!r}" for k, v in values.items())])
        raise ValueError(f"{name} cannot be built from {given}: {error}.") from None


def _fields(cls: type[Pattern]) -> list[str]:
    """What a pattern is made of; fields that it derives by itself are left out."""
    return [field.name for field in dataclasses.fields(cls) if field.init]


def _check_fields(name: str, given: Iterable[str], known: list[str]) -> None:
    for field in given:
        if field not in known:
            raise ValueError(
                f"{name} has no field {field!r}{_hint(field, known)}; it has {', '.join(known)}."
            )


def _hint(word: str, known: Iterable[str]) -> str:
    near = meant(word, known)
    return f", did you mean {near!r}?" if near else ""
