"""Families by name, and named sizes."""

from __future__ import annotations

import fnmatch
from typing import Any, TypeVar

from foveal.common.lazy import is_provided, provided
from foveal.common.words import suggest

Family = TypeVar("Family", bound=type[Any])  # of a Model, whose file imports this one

_families: dict[str, type[Any]] = {}
_models: dict[str, tuple[str, dict[str, Any]]] = {}


def register(sizes: dict[str, dict[str, Any]]) -> Any:
    """Class decorator: makes a family and its named sizes known.

    Args:
        sizes: model name -> constructor keywords that differ from the defaults.
    """

    def add(cls: Family) -> Family:
        _families[cls.family] = cls
        for name, options in sizes.items():
            _models[name] = (cls.family, options)
        return cls

    return add


def family(name: str) -> type[Any]:
    """The class of a family.

    Raises:
        ValueError: no such family.
    """
    name = name.replace("-", "_")  # files of earlier versions have a hyphen in one of them
    if name not in _families and is_provided(name):  # of a room above, which has more than models
        found = provided(name)
        if isinstance(found, type) and getattr(found, "family", None) == name:
            return found
    if name not in _families:
        raise ValueError(f"unknown model family {name!r}; {suggest(name, _families)}")
    return _families[name]


def find_model(name: str) -> tuple[type[Any], dict[str, Any]]:
    """The class of a named model, and the keywords of its size.

    Raises:
        ValueError: no such name; with the nearest one.
    """
    if name not in _models:
        hint = suggest(name, _models, "see foveal.list_models().")
        raise ValueError(f"unknown model {name!r}; {hint}")
    of_family, options = _models[name]
    return family(of_family), options


def create_model(name: str, **overrides: Any) -> Any:
    """A new Model by name, with random weights.

    Args:
        name: one of `list_models()`.
        overrides: constructor keywords that replace those of the name; `pretrained=False`, as
            timm's function is called, is none.

    Raises:
        ValueError: an unknown name or keyword, with the nearest known one.
    """
    cls, options = find_model(name)
    if overrides.pop("pretrained", False):
        raise ValueError(
            "pretrained must be False: no trained weights come with foveal; load your own with "
            "foveal.load_model or foveal.load_upstream."
        )
    return cls(**{**options, **overrides})


def list_models(glob: str = "*") -> list[str]:
    """Names of models that match a shell pattern, sorted."""
    return sorted(fnmatch.filter(_models, glob))
