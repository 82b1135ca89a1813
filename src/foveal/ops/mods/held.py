"""What a mod holds: its closure kept as it stands, and a key that tells whether it has changed.

A mod runs again in the backward pass, when a loop around it may long have gone on and a buffer may
hold other numbers; and what a BlockMask says is planned once.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Hashable, Iterator
from typing import Any

from torch import Tensor, nn

from foveal.patterns.identity import key_of

DEEPEST = 6
"""Functions within functions, and objects within objects, that are looked into."""

_METHODS = (types.MethodType,)
_SKIPPED = (types.ModuleType, types.BuiltinFunctionType, type)
_VALUES = (int, float, bool, str, bytes, complex, type(None), Tensor)


def frozen(mod: Any) -> Any:
    """The mod with the closure that it has now, which later assignments do not reach."""
    return _frozen(mod, {})


def _frozen(mod: Any, done: dict[int, Any]) -> Any:
    if id(mod) in done:
        return done[id(mod)]
    if isinstance(mod, functools.partial):
        parts = [_frozen(one, done) for one in mod.args]
        named = {name: _frozen(one, done) for name, one in mod.keywords.items()}
        return functools.partial(_frozen(mod.func, done), *parts, **named)
    if type(mod) in (tuple, list):
        return type(mod)([_frozen(one, done) for one in mod])
    if not isinstance(mod, types.FunctionType) or not mod.__closure__:
        return mod
    cells = tuple([types.CellType() for _ in mod.__closure__])
    copy = types.FunctionType(mod.__code__, mod.__globals__, mod.__name__, mod.__defaults__, cells)
    copy.__kwdefaults__ = mod.__kwdefaults__
    copy.__dict__.update(mod.__dict__)
    done[id(mod)] = copy
    for cell, old in zip(cells, mod.__closure__, strict=True):
        for content in _content(old):
            cell.cell_contents = _frozen(content, done)
    return copy


def _content(cell: Any) -> Iterator[Any]:
    try:
        yield cell.cell_contents
    except ValueError:  # nothing is assigned yet
        return


def key_of_mod(mod: Callable[..., Any]) -> Hashable:
    """Equal as long as nothing has changed that the mod can be seen to use.

    That is what its closure, its defaults and the globals that it names hold, of numbers the value
    and of tensors which one and whether it was changed in place; of objects the attributes that it
    names, and so on inside of functions that it holds.
    """
    return _key(mod, (), 0, set())


def _key(value: Any, names: tuple[str, ...], depth: int, seen: set[int]) -> Hashable:
    if isinstance(value, _VALUES):
        return key_of(value)
    if depth > DEEPEST or id(value) in seen or isinstance(value, _SKIPPED):
        return id(value)
    seen.add(id(value))
    inside = functools.partial(_key, depth=depth + 1, seen=seen)
    if isinstance(value, functools.partial):
        return tuple([inside(one, names) for one in (value.func, value.args, value.keywords)])
    if isinstance(value, _METHODS):
        names = (*names, *value.__func__.__code__.co_names) if _is_ours(value.__func__) else names
        return inside(value.__func__, names), inside(value.__self__, names)
    if isinstance(value, types.FunctionType):
        return _function_key(value, inside)
    if isinstance(value, tuple | list):
        return tuple([inside(one, names) for one in value])
    if isinstance(value, dict):
        return tuple([(key_of(name), inside(one, names)) for name, one in value.items()])
    return _object_key(value, names, inside)


def _is_ours(function: Any) -> bool:
    """Whether to look into it: what torch itself does does not change."""
    module = getattr(function, "__module__", None) or ""
    return isinstance(function, types.FunctionType) and module.partition(".")[0] != "torch"


def _function_key(value: types.FunctionType, inside: Callable[..., Hashable]) -> Hashable:
    closure = [one for cell in value.__closure__ or () for one in _content(cell)]
    if not _is_ours(value):  # and_masks is torch's, and holds masks that are not
        return value.__code__, tuple([inside(one, ()) for one in closure])
    names = _names(value.__code__)
    held = [value.__globals__[name] for name in names if name in value.__globals__]
    given = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    return value.__code__, tuple([inside(one, names) for one in (*closure, *held, *given)])


def _names(code: types.CodeType) -> tuple[str, ...]:
    """Globals and attributes that code names, that of functions inside it too."""
    inner = [one for one in code.co_consts if isinstance(one, types.CodeType)]
    return (*code.co_names, *(name for one in inner for name in _names(one)))


def _object_key(value: Any, names: tuple[str, ...], inside: Callable[..., Hashable]) -> Hashable:
    """An object, and what it holds under the names that are used."""
    call = getattr(type(value), "forward" if isinstance(value, nn.Module) else "__call__", None)
    if _is_ours(call):
        names = (*names, *_names(call.__code__))  # type: ignore[union-attr]
    held = dict(getattr(value, "__dict__", {}))
    if isinstance(value, nn.Module):
        held |= {**value._parameters, **value._buffers, **value._modules}
        if not _is_ours(call):  # a layer of torch's: all that it holds
            names = (*names, *value._parameters, *value._buffers, *value._modules)
    found = [(name, inside(one, names)) for name, one in held.items() if name in names]
    return key_of(type(value)), id(value), tuple(found)
