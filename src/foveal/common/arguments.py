"""Arguments read by their annotations, so that no constructor checks its types by hand.

    @checked
    def __init__(self, dim: int, rotary: bool = True) -> None: ...

`rotary="false"` and `dim=8.0` are refused with one line, NumPy's numbers become Python's, lists
become tuples. What a value must be beyond its type, the constructor says itself.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from foveal.common.checks import as_bool, as_int, as_number
from foveal.common.words import meant

P = ParamSpec("P")
R = TypeVar("R")

_NUMBERS: dict[Any, Callable[[str, Any], Any]] = {bool: as_bool, int: as_int, float: as_number}
_WORDS = {
    bool: "True or False",
    int: "an int",
    float: "a number",
    str: "a string",
    type(None): "None",
}


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Read the arguments of a function by its annotations before it runs.

    Raises (from the function that is made):
        ValueError: an argument that is not what its annotation says.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def reads(*args: P.args, **kwargs: P.kwargs) -> R:
        bound = signature.bind(*args, **kwargs)
        hints = _hints(function)
        for name, value in bound.arguments.items():
            kind = signature.parameters[name].kind
            several = kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
            if name in hints and not several:
                bound.arguments[name] = read(name, value, hints[name])
        return function(*bound.args, **bound.kwargs)

    return reads


@functools.lru_cache(maxsize=256)
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    return get_type_hints(function)


def read(name: str, value: Any, hint: Any) -> Any:
    """A value as an annotation describes it.

    Args:
        name: of the argument, for the message.
        hint: int, float, bool, str, None, Literal, unions, tuples, sequences, mappings and
            classes are understood; anything else takes every value.

    Raises:
        ValueError: the value is something else.
    """
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _read_union(name, value, parts)
    if hint in _NUMBERS:
        return _NUMBERS[hint](name, value)
    if origin is Literal:
        return _read_literal(name, value, parts)
    if origin in (tuple, Sequence):
        return _read_sequence(name, value, hint)
    kind = origin or hint
    if kind is Any or not isinstance(kind, type) or getattr(kind, "_is_protocol", False):
        return value
    if not isinstance(value, kind):
        raise _error(name, value, hint)
    return value


def _read_union(name: str, value: Any, parts: tuple[Any, ...]) -> Any:
    # a number is told by its own type first: True is no int, and 2 no float where ints are taken
    for part in parts:
        try:
            return read(name, value, part)
        except ValueError:
            continue
    whole = [part for part in parts if part is not type(None)]
    if len(whole) == 1:  # its own message is the better one
        return read(name, value, whole[0])
    raise _error(name, value, Union[parts])  # noqa: UP007 - of a tuple that is known only now


def _read_literal(name: str, value: Any, known: tuple[Any, ...]) -> Any:
    for one in known:
        if type(one) is type(value) and one == value:
            return one
    near = meant(value, map(str, known))
    hint = f"; did you mean {near!r}?" if near else "."
    raise ValueError(
        f"{name} must be {_joined(list(map(repr, known)))}, got {name}={value!r}{hint}"
    )


def _read_sequence(name: str, value: Any, hint: Any) -> Any:
    if hasattr(value, "tolist") and getattr(value, "ndim", 0) == 1:
        value = value.tolist()  # an array of NumPy
    if not isinstance(value, list | tuple | range):
        raise _error(name, value, hint)
    origin, parts = get_origin(hint), get_args(hint)
    if origin is tuple and parts[-1:] != (...,):
        if len(value) != len(parts):
            raise _error(name, value, hint)
        each: tuple[Any, ...] = parts
    else:
        each = (parts[0] if parts else Any,) * len(value)
    return tuple(
        read(f"{name}[{i}]", item, part)
        for i, (item, part) in enumerate(zip(value, each, strict=True))
    )


def _error(name: str, value: Any, hint: Any) -> ValueError:
    shown = repr(value)
    if len(shown) > 80 or "\n" in shown:
        shown = f"a {type(value).__name__}"
    return ValueError(f"{name} must be {describe(hint)}, got {name}={shown}.")


def describe(hint: Any) -> str:
    """What an annotation asks for, in words."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _joined([describe(part) for part in parts])
    if origin is Literal:
        return _joined(list(map(repr, parts)))
    if origin in (tuple, Sequence):
        count = {2: "pair"}.get(len(parts), "tuple") if ... not in parts else "list"
        return f"a {count if origin is tuple else 'list'} of {_plural(parts[0])}"
    if origin is not None and issubclass(origin, Mapping):
        return "a mapping"
    return _WORDS.get(hint, f"a {getattr(hint, '__name__', hint)}")


def _plural(hint: Any) -> str:
    """What the entries of a list are, in words."""
    if hint in (Any, bool):
        return "values" if hint is Any else "bools"
    noun, of, entries = describe(hint).removeprefix("an ").removeprefix("a ").partition(" of ")
    return f"{noun}s{of}{entries}"


def _joined(words: list[str]) -> str:
    words = list(dict.fromkeys(words))
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
