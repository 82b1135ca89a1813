"""What the configurations of all families share: reading keywords, and JSON both ways."""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from foveal.common.arguments import read
from foveal.common.checks import as_int
from foveal.common.words import suggest
from foveal.patterns import Pattern
from foveal.patterns.serialize import from_config, parse, to_config

PatternChoice = Pattern | Sequence[Pattern]
"""One pattern for all, or several to choose from."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Base of the configurations: subclass it as a frozen dataclass with a default per field.

    Every value is read by the annotation of its field (`common.arguments`); a `__post_init__` of
    a subclass calls this one first, and then says what holds beyond types.
    """

    def __post_init__(self) -> None:
        cls: type = type(self)
        for name, hint in _hints(cls).items():
            value = read(name, getattr(self, name), hint)
            if hint in (int, int | None) and value is not None:
                as_int(name, value, 0)  # no count is negative; those that must be more say so
            check_magnitude(name, value)
            object.__setattr__(self, name, value)

    @classmethod
    def names(cls) -> list[str]:
        """The keywords that the configuration takes."""
        return [field.name for field in dataclasses.fields(cls)]

    @classmethod
    def resolve(cls, config: Self | None, options: dict[str, Any]) -> Self:
        """A configuration from another one, keywords, or both (keywords win).

        Raises:
            ValueError: a keyword that the family does not have.
        """
        check_keywords(cls.__name__, options, cls.names())
        return cls(**options) if config is None else dataclasses.replace(config, **options)

    def to_dict(self) -> dict[str, Any]:
        """Keyword -> value, as given to the constructor."""
        return {name: getattr(self, name) for name in self.names()}

    def to_json(self) -> dict[str, Any]:
        """The same in values that JSON knows."""
        return {name: _to_json(value) for name, value in self.to_dict().items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The configuration that `to_json` described."""
        return cls.resolve(None, {name: _from_json(value) for name, value in values.items()})


_LARGEST, _MOST_LAYERS = 2**31 - 1, 10_000
_STEMS = ("depth", "layer", "block")
"""Endings of the names of fields that say how many modules are built."""


def check_magnitude(name: str, value: Any) -> None:
    """Raise ValueError for a number, also within tuples, that no model can have.

    Without an end to layers the constructor would go on until the memory is full.
    """
    if isinstance(value, tuple | list):
        for one in value:
            check_magnitude(name, one)
    if isinstance(value, int):
        most = _MOST_LAYERS if name.removesuffix("s").endswith(_STEMS) else _LARGEST
        if value > most:
            raise ValueError(f"{name} must be at most {most:,}, got {name}={value}.")
    if isinstance(value, int | float) and name.endswith("_ratio") and value <= 0:
        raise ValueError(f"{name} must be more than 0, got {name}={value}.")


@functools.lru_cache(maxsize=64)
def _hints(cls: type) -> dict[str, Any]:
    """The annotations of the fields, without patterns, which have texts of their own."""
    hints, fields = typing.get_type_hints(cls), dataclasses.fields(cls)
    return {one.name: hints[one.name] for one in fields if not _has_pattern(hints[one.name])}


def _has_pattern(hint: Any) -> bool:
    return hint is Pattern or any(_has_pattern(part) for part in typing.get_args(hint))


def check_keywords(owner: str, options: Iterable[str], known: Sequence[str]) -> None:
    """Raise ValueError for the first unknown keyword, with the nearest known one."""
    for name in options:
        if name not in known:
            hint = suggest(name, known, f"it knows {', '.join(known)}.")
            raise ValueError(f"{owner} has no option {name!r}; {hint}")


def check_range(least: float, **values: float) -> None:
    """Raise ValueError for the first value below `least`, naming it."""
    for name, value in values.items():
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {name}={value!r}.")


def check_entries(least: int, **values: Sequence[int]) -> None:
    """Raise ValueError for the first list with an entry below `least`, naming it."""
    for name, value in values.items():
        if any(entry < least for entry in value):
            raise ValueError(
                f"{name} must have entries of at least {least}, got {name}={tuple(value)}."
            )


def read_pattern(choice: Any, name: str = "pattern") -> Any:
    """A pattern, or a tuple (of tuples) of them, from what a person or a file may write.

    Strings such as "SlidingWindow(256)" and plain dicts (`patterns.serialize`) become patterns.

    Raises:
        ValueError: the choice is none of these.
    """
    if isinstance(choice, Pattern):
        return choice
    if isinstance(choice, str):
        return parse(choice)
    if isinstance(choice, dict):
        return from_config(choice)
    if isinstance(choice, Sequence) and len(choice):
        return tuple(read_pattern(one, name) for one in choice)
    raise ValueError(
        f"{name} must be a pattern or a list of patterns, got {name}={choice!r}; for example "
        "foveal.patterns.SlidingWindow(256)."
    )


def _to_json(value: Any) -> Any:
    if isinstance(value, Pattern):
        return to_config(value)
    if isinstance(value, (list, tuple)):
        return [_to_json(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"cannot write {value!r} into a configuration file.")


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_from_json(item) for item in value)
    return from_config(value) if isinstance(value, dict) else value
