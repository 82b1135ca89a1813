"""What makes two values the same for a cache: kind and content, or being one and the same object.

Python says that True == 1 == 1.0, that patterns of a class without fields are all equal, and that
tensors have no hash. Here 1 and True differ, and what has no content to compare is itself only.
"""

from __future__ import annotations

import enum
import weakref
from collections.abc import Hashable
from typing import Any

from torch import Tensor

_VALUES = (int, bool, str, bytes, complex, type(None))


class Same:
    """Equal to another one that refers to the same living object."""

    __slots__ = ("_hash", "_refer")

    def __init__(self, value: Any) -> None:
        self._hash = id(value)
        try:
            self._refer: Any = weakref.ref(value)
        except TypeError:
            self._refer = lambda: value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Same):
            return NotImplemented
        mine = self._refer()
        return mine is not None and mine is other._refer()

    def __hash__(self) -> int:
        return self._hash


def key_of(value: Any) -> Hashable:
    """Equal for values of one type and content; of what may change, as it stands now."""
    kind = type(value)
    if kind in _VALUES:
        return kind, value
    if kind is float:
        return kind, value.hex()  # tells -0.0 from 0.0, and knows NaN again
    own = getattr(value, "cache_key", None)
    if own is not None and not isinstance(value, type):
        return own()
    if isinstance(value, Tensor):
        return _tensor_key(value)
    if isinstance(value, tuple | list):
        return kind, *[key_of(one) for one in value]
    if isinstance(value, dict):
        return kind, *[(key_of(name), key_of(one)) for name, one in value.items()]
    if isinstance(value, set | frozenset):
        return kind, frozenset([key_of(one) for one in value])
    if hasattr(value, "__array_interface__"):  # NumPy
        return kind, value.shape, str(value.dtype), value.tobytes()
    if isinstance(value, enum.Enum) or kind.__eq__ is object.__eq__:
        return kind, Same(value)
    try:
        hash(value)
    except TypeError:
        return kind, Same(value)
    return kind, value


def _tensor_key(value: Tensor) -> Hashable:
    """A tensor is itself, until it is changed in place."""
    if value.is_inference():  # counts no changes
        return Tensor, value.dtype, value.shape, tuple(value.flatten().tolist())
    return Tensor, Same(value), value._version


def is_fixed(value: Any) -> bool:
    """Whether the key of a value can never change."""
    if isinstance(value, tuple | frozenset):
        return all(is_fixed(one) for one in value)
    settled = getattr(value, "has_fixed_key", None)
    if settled is not None and not isinstance(value, type):
        return settled()
    return type(value) in (*_VALUES, float) or isinstance(value, enum.Enum | type)
