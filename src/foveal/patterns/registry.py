"""Every class of patterns by module and qualified name, and which definition of that name it is.

A cell of a notebook that runs again, or a function that makes classes, defines a name anew while
patterns of the old class live on. Each definition has a number, so that a name always means one
class. Nothing here keeps a class alive.
"""

from __future__ import annotations

import uuid
import weakref
from typing import Any

_PROCESS = uuid.uuid4().hex[:8]
_COUNTS: dict[tuple[str, str], int] = {}
_CLASSES: weakref.WeakValueDictionary[tuple[str, str, int], type] = weakref.WeakValueDictionary()


def register(cls: type) -> str:
    """Note a class; returns its reference: "module:Name", or "module:Name#2@process"."""
    key = (cls.__module__, cls.__qualname__)
    number = _COUNTS[key] = _COUNTS.get(key, -1) + 1
    _CLASSES[*key, number] = cls
    name = ":".join(key)
    return f"{name}#{number}@{_PROCESS}" if number else name


def lookup(reference: str) -> type[Any]:
    """The class of a reference; one from another process means the latest of that name.

    Raises:
        LookupError: there is no such class (any more).
    """
    name, _, definition = reference.partition("#")
    module, _, qualified = name.partition(":")
    number, _, process = definition.partition("@")
    if process and process != _PROCESS:
        number = str(_COUNTS.get((module, qualified), 0))
    found = _CLASSES.get((module, qualified, int(number or 0)))
    if found is None:
        raise LookupError(
            f"there is no pattern class {qualified} of module {module} (any more); import the "
            "module that defines it first."
        )
    return found


def is_latest(cls: type) -> bool:
    """Whether a class is what its module and name mean now."""
    key = (cls.__module__, cls.__qualname__)
    return _CLASSES.get((*key, _COUNTS.get(key, 0))) is cls


def latest() -> list[type]:
    """All classes that their names mean now."""
    return [cls for cls in list(_CLASSES.values()) if is_latest(cls)]
