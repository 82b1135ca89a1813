"""What the configurations of all families share: reading keywords, and JSON both ways."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from foveal.common.words import suggest
from foveal.patterns import Pattern
from foveal.patterns.serialize import from_config, parse, to_config

PatternChoice = Pattern | Sequence[Pattern]
"""One pattern for all, or several to choose from."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Base of the configurations: subclass it as a frozen dataclass with a default per field."""

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
