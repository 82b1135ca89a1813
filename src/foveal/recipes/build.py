"""From the [model] table of a recipe to a model."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Mapping
from typing import Any

from torch import nn

from foveal import models
from foveal.common.lazy import named
from foveal.common.meta import on_meta
from foveal.common.words import suggest
from foveal.training.config import check_keys

_REFUSALS = (TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError, MemoryError)
"""How constructors answer to arguments that they did not expect."""

_DEEP, _MOST_LAYERS = ("depth", "num_layers", "enc_depth", "dec_depth"), 10_000


def model_names() -> list[str]:
    """The model classes that a recipe may name."""
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
        found = named(name) if home else getattr(models, own)
    except (ImportError, AttributeError, ValueError, TypeError):
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
        _check_memory(cls, arguments, where)
        return cls(**arguments)
    except _REFUSALS as error:
        reason = " ".join(f"{error}".split()) or type(error).__name__
        raise ValueError(
            f"{cls.__name__} refuses [model] of {where}: {reason[:300].rstrip('.')}."
        ) from error


def _check_memory(cls: type[nn.Module], arguments: Mapping[str, Any], where: str) -> None:
    """Raise ValueError for a model whose weights this machine cannot hold.

    The system would not refuse the memory but end the process once it is written to.
    """
    total, needed = _memory(), 0.0
    for name in _DEEP:
        value = arguments.get(name)
        if isinstance(value, int) and value > _MOST_LAYERS:
            raise ValueError(
                f"{name} must be at most {_MOST_LAYERS:,} in [model] of {where}, got {value}."
            )
    try:
        with on_meta():
            model = cls(**arguments)
        needed = float(sum(p.numel() * p.element_size() for p in model.parameters()))
        size = f"{needed / 1e9:,.1f} GB"
    except _REFUSALS as error:
        if "overflow" not in str(error):  # on the device itself it may be made, or say why not
            return
        needed, size = math.inf, "more bytes than can be counted"
    if needed > total or needed == math.inf:
        raise ValueError(
            f"the {cls.__name__} of {where} has weights of {size}, and this machine has "
            f"{total / 1e9:,.1f} GB of memory; make it smaller."
        )


def _memory() -> float:
    """Bytes of memory of this machine, or infinity where it does not say."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return math.inf


def _tuples(value: Any) -> Any:
    """Lists, the only sequences of TOML and JSON, as the tuples that constructors expect."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _is_model(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, nn.Module)
