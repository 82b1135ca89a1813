"""Patterns as plain data (JSON, TOML) and as text a person types; both ways are safe to read.

A class of foveal goes by its name, and so does any other one whose name is the only one of its
kind; where two modules have a class of one name, it is written with its module: "my.module.Name".
"""

from __future__ import annotations

import ast
import base64
import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from foveal.common.words import meant
from foveal.patterns import registry
from foveal.patterns.base import Pattern
from foveal.patterns.sizes import MOST

Args = ParamSpec("Args")
Result = TypeVar("Result")

SHOWN = 200
"""Characters of a wrong text or config that a message shows."""


def known_patterns() -> dict[str, type[Pattern]]:
    """Pattern classes by the name that stands for them: those of foveal, and those of others."""
    import foveal.patterns  # noqa: F401  (defines the classes)

    classes = [cls for cls in registry.latest() if _is_complete(cls)]
    found = {_qualified(cls): cls for cls in classes}
    for name in {cls.__name__ for cls in classes}:
        alike = [cls for cls in classes if cls.__name__ == name]
        ours = [cls for cls in alike if _is_ours(cls)]
        if len(ours or alike) == 1:
            short = (ours or alike)[0]
            found[name] = found.pop(_qualified(short))
    return dict(sorted(found.items()))


def _is_complete(cls: type) -> bool:
    complete = issubclass(cls, Pattern) and not cls._abstract
    return complete and not cls.__name__.startswith("_")


def _is_ours(cls: type) -> bool:
    return cls.__module__.startswith("foveal.")


def _qualified(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text)} characters)"


def _bounded(read: Callable[Args, Result]) -> Callable[Args, Result]:
    """What is too deep or too large to be read is a wrong value like any other."""

    @functools.wraps(read)
    def wrapped(*args: Args.args, **kwargs: Args.kwargs) -> Result:
        try:
            return read(*args, **kwargs)
        except RecursionError:
            raise ValueError("a pattern must not be nested as deeply as this.") from None
        except (MemoryError, OverflowError) as error:
            raise ValueError(f"a pattern must not be as large as this: {error}.") from None

    return wrapped


# -- plain data ---------------------------------------------------------------------------------


def to_config(pattern: Pattern) -> dict[str, Any]:
    """A pattern as a dict of plain values: {"name": "SlidingWindow", "window": 8, "causal": true}.

    Nested patterns become nested dicts, tuples lists, and layouts {"shape": ..., "bits": ...}
    with the bits packed in base64. `from_config` gives back an equal pattern.

    Raises:
        ValueError: pattern is not a Pattern, its class goes by no name, or it holds a value that
            has no plain form.
    """
    if not isinstance(pattern, Pattern):
        raise ValueError(f"pattern must be a Pattern, got {pattern!r}.")
    config = _config(pattern)
    if from_config(config) != pattern:
        raise ValueError(
            f"a pattern must be made of its fields to have a plain form; {_show(pattern)} is not "
            "what its class makes of them."
        )
    return config


def _config(pattern: Pattern) -> dict[str, Any]:
    cls = type(pattern)
    names = {one: name for name, one in known_patterns().items()}
    if cls not in names:
        raise ValueError(
            f"{_qualified(cls)} has been defined anew since {_show(pattern)} was built (or its "
            "name begins with an underscore); build the pattern again."
        )
    if "__dataclass_fields__" not in vars(cls):
        raise ValueError(f"{_qualified(cls)} must be a dataclass to have a plain form.")
    fields = {name: _plain(getattr(pattern, name)) for name in _fields(cls)}
    return {"name": names[cls], **fields}


@_bounded
def from_config(config: dict[str, Any]) -> Pattern:
    """The pattern that `to_config` described.

    Raises:
        ValueError: unknown name or field (the nearest known one is suggested), or a missing one.
    """
    if not isinstance(config, dict) or "name" not in config:
        raise ValueError(f"a pattern must be a dict with a 'name', got {_show(config)}.")
    cls = _find(config["name"])
    values = {key: _rich(value) for key, value in config.items() if key != "name"}
    _check_fields(cls.__name__, values, _fields(cls))
    if set(values) == {"parts"} and _takes_any(cls):  # unions take them by position
        if not isinstance(values["parts"], tuple):
            raise ValueError(f"parts must be a list of patterns, got {_show(values['parts'])}.")
        return _build(cls.__name__, cls, values["parts"], {})
    return _build(cls.__name__, cls, (), values)


def _plain(value: Any) -> Any:
    if isinstance(value, Pattern):
        return _config(value)
    if isinstance(value, Tensor) and value.dtype == torch.bool:
        return _pack(value)
    if type(value) in (tuple, list):
        return [_plain(one) for one in value]
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise ValueError(
        f"a pattern's field must be plain, a layout or a pattern, got {_show(value)}."
    )


def _rich(value: Any) -> Any:
    if isinstance(value, dict):
        return _unpack(value) if "bits" in value else from_config(value)
    return tuple(_rich(one) for one in value) if isinstance(value, list | tuple) else value


def _pack(layout: Tensor) -> dict[str, Any]:
    bits = layout.cpu().flatten()
    padded = torch.nn.functional.pad(bits.long(), (0, -len(bits) % 8)).reshape(-1, 8)
    packed = bytes((padded * _bits()).sum(1).tolist())
    return {"shape": list(layout.shape), "bits": base64.b64encode(packed).decode()}


def _unpack(packed: dict[str, Any]) -> Tensor:
    shape: Any = packed.get("shape")
    bits = packed["bits"]
    sized = isinstance(shape, list | tuple) and all(
        type(side) is int and 0 <= side <= MOST for side in shape
    )
    if not sized or not isinstance(bits, str) or set(packed) - {"shape", "bits"}:
        raise ValueError(
            "a layout must have a 'shape' of ints and 'bits' in base64, got " + _show(packed)
        )
    count = math.prod(shape)
    content = base64.b64decode(bits, validate=True)
    if len(content) != -(-count // 8):
        raise ValueError(
            f"bits must hold {-(-count // 8)} bytes for shape {tuple(shape)}, got {len(content)} "
            "bytes."
        )
    values = torch.tensor(list(content), dtype=torch.long, device="cpu")[:, None] & _bits()
    return values.bool().flatten()[:count].reshape(shape)


def _bits() -> Tensor:
    return 1 << torch.arange(7, -1, -1, device="cpu")


# -- text ---------------------------------------------------------------------------------------


@_bounded
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
            f"a pattern must read like SlidingWindow(window=8), got {_show(text)} ({error.msg})."
        ) from None
    except ValueError as error:  # null bytes
        raise ValueError(
            f"a pattern must read like SlidingWindow(window=8), got {_show(text)} ({error})."
        ) from None
    pattern = _evaluate(tree.body, text)
    if not isinstance(pattern, Pattern):
        raise ValueError(f"a pattern must read like SlidingWindow(window=8), got {_show(text)}.")
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
        f"{_show(ast.unparse(node))} in {_show(text)}."
    )


def _call(node: ast.Call, text: str) -> Any:
    name, build = _callee(node.func, text)
    if any(isinstance(one, ast.Starred) for one in node.args) or not all(
        keyword.arg for keyword in node.keywords
    ):
        raise ValueError(f"* and ** may not stand in a pattern, got {_show(text)}.")
    names = [str(keyword.arg) for keyword in node.keywords]
    if twice := [one for one in names if names.count(one) > 1]:
        raise ValueError(f"{twice[0]} may be given once, got it twice in {_show(text)}.")
    values = {str(keyword.arg): _evaluate(keyword.value, text) for keyword in node.keywords}
    return _build(name, build, [_evaluate(one, text) for one in node.args], values)


def _callee(node: ast.expr, text: str) -> tuple[str, Callable[..., Any]]:
    """A pattern class, or one of its public class methods such as BlockSparse.fixed."""
    if not isinstance(node, ast.Name | ast.Attribute) or not _is_path(node):
        raise ValueError(
            f"a pattern must begin with its name, got {_show(ast.unparse(node))} in {_show(text)}."
        )
    path = ast.unparse(node)
    owner, _, method = path.rpartition(".")
    known = known_patterns()
    if not owner or path in known or (owner not in known and not isinstance(node.value, ast.Name)):  # type: ignore[union-attr]
        return path, _find(path)
    cls = _find(owner)
    constructors = [n for one in cls.__mro__ for n in _constructors(one)]
    if method in constructors:
        return path, getattr(cls, method)
    raise ValueError(
        f"{cls.__name__} has no constructor {method!r}{_hint(method, constructors)} "
        f"(in {_show(text)})."
    )


def _is_path(node: ast.expr) -> bool:
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name)


def _constructors(cls: type) -> list[str]:
    """Public class methods of a class that are constructors: those of Pattern itself are none."""
    if cls is Pattern or not issubclass(cls, Pattern):
        return []
    members = vars(cls).items()
    return [n for n, member in members if isinstance(member, classmethod) and n[0] != "_"]


# -- shared -------------------------------------------------------------------------------------


def _find(name: Any) -> type[Pattern]:
    known = known_patterns()
    if isinstance(name, str) and name in known:
        return known[name]
    alike = [one for one in known if one.rpartition(".")[2] == name]
    if len(alike) > 1:
        raise ValueError(
            f"pattern {name!r} may be any of {', '.join(alike)}; write the name with its module."
        )
    raise ValueError(
        f"unknown pattern {_show(name)}{_hint(str(name), known)}; known are {', '.join(known)}."
    )


def _takes_any(build: Callable[..., Any]) -> bool:
    """Whether a callable takes any number of arguments by position."""
    parameters = inspect.signature(build).parameters.values()
    return any(one.kind is one.VAR_POSITIONAL for one in parameters)


def _build(
    name: str, build: Callable[..., Any], args: Sequence[Any], values: dict[str, Any]
) -> Pattern:
    signature = inspect.signature(build)
    if not _takes_any(build):
        _check_fields(name, values, list(signature.parameters))
    try:
        signature.bind(*args, **values)
    except TypeError as error:
        raise ValueError(f"{name}{signature}: {error}.".replace(" -> None", "")) from None
    try:
        return build(*args, **values)
    except (TypeError, RuntimeError) as error:  # of a kind or size that torch cannot bear
        if isinstance(error, RecursionError):
            raise
        given = ", ".join([*map(_show, args), *(f"{k}={_show(v)}" for k, v in values.items())])
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{name} cannot be built from {given}: {reason}.") from None


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
