"""From the [model] table of a recipe to a model."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from foveal.common.words import suggest
from foveal.training.config import check_keys


def model_names() -> list[str]:
    """The model classes that a recipe may name."""
    models = importlib.import_module("foveal.models")
    return sorted(
        name
        for name in models.__all__
        if _is_model(getattr(models, name)) and hasattr(getattr(models, name), "config_class")
    )


def model_class(name: str) -> type[nn.Module]:
    """A model class by its name in foveal.models, or 'package.module:Class' for one's own.

    Raises:
        ValueError: there is none of that name.
    """
    home, _, own = name.rpartition(":")
    if not home and name not in model_names():
        raise ValueError(f"unknown model name {name!r}; {suggest(name, model_names())}")
    try:
        found = getattr(importlib.import_module(home or "foveal.models"), own)
    except (ImportError, AttributeError):
        raise ValueError(f"cannot import the model class {name!r}.") from None
    if not _is_model(found):  # a run's settings must not be able to call anything else
        raise ValueError(f"the model {name!r} is not a torch.nn.Module.")
    checked: type[nn.Module] = found
    return checked


def model_arguments(cls: type[nn.Module]) -> dict[str, Any]:
    """The keywords of a model's constructor and their defaults (`inspect.Parameter.empty`)."""
    settings = getattr(cls, "config_class", None)
    parameters = inspect.signature(settings or cls).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {p.name: p.default for p in parameters if p.kind in kinds}


def build_model(table: Mapping[str, Any], where: str, **defaults: Any) -> nn.Module:
    """Make the model that a [model] table describes.

    Args:
        table: `name`, and arguments as TOML holds them: lists for tuples; patterns as
            tables or text, which the models read themselves.
        where: names the recipe in errors.
        defaults: arguments that the task knows, used where the table is silent and the
            constructor takes them.

    Raises:
        ValueError: an unknown name or argument, or a value that the model refuses.
    """
    cls = model_class(table["name"])
    known = model_arguments(cls)
    given = {key: value for key, value in table.items() if key != "name"}
    check_keys(given, known, f"[model] of {where} ({cls.__name__})")
    fitting = {key: value for key, value in defaults.items() if key in known}
    arguments = {key: _tuples(value) for key, value in {**fitting, **given}.items()}
    missing = [key for key, value in known.items() if value is inspect.Parameter.empty]
    missing = [key for key in missing if key not in arguments]
    if missing:
        raise ValueError(f"the key {missing[0]!r} is missing in [model] of {where}.")
    try:
        return cls(**arguments)
    except TypeError as error:
        raise ValueError(f"{cls.__name__} refuses [model] of {where}: {error}.") from error


def _tuples(value: Any) -> Any:
    """Lists, the only sequences of TOML and JSON, as the tuples that constructors expect."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _is_model(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, nn.Module)
