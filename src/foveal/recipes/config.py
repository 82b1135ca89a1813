"""Recipes: the TOML that a run starts from, and strict reading of settings."""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import math
import os
import re
import shlex
import tomllib
from collections.abc import Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from foveal.common.files import expanded, read_text
from foveal.common.words import suggest
from foveal.data.emoji import EMOJI
from foveal.data.remote import is_remote
from foveal.data.sequence_sources import LISTOPS
from foveal.data.sources import STANDARD_LIBRARY
from foveal.recipes.kind import TASKS, find_kind
from foveal.recipes.settings import SECTIONS, RunConfig
from foveal.training.config import (
    OptimizerConfig,
    TrainingConfig,
    check_keys,
    from_dict,
    show,
)
from foveal.training.layout import ParallelConfig

__all__ = ["RunConfig", "config_from_dict", "load_recipe", "read_recipe", "recipe_names"]

_LARGEST_RECIPE = 1 << 20
_LARGEST_INT = 2**63
_DEEPEST = 20


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(_shipped())


def _shipped() -> dict[str, Traversable]:
    """The recipes that lie in the folders of the tasks, by name."""
    home = resources.files("foveal.recipes")
    found = [entry for task in TASKS for entry in (home / task).iterdir()]
    return {
        entry.name.removesuffix(".toml"): entry for entry in found if entry.name.endswith(".toml")
    }


def read_recipe(name: str) -> str:
    """The text of a recipe: a shipped name, or a path to a TOML file.

    Raises:
        ValueError: there is no such recipe.
    """
    shipped = _shipped()
    if name in shipped:
        return shipped[name].read_text(encoding="utf-8")
    path = expanded(name)
    if os.path.lexists(path):
        if path.suffix.lower() != ".toml" and (path.is_file() or path.is_dir()):
            raise ValueError(
                f"RECIPE must be the name of a recipe or a TOML file, got {show(name)}; "
                f"{_wish(path)}"
            )
        return read_text(path, _LARGEST_RECIPE)
    if path.suffix == ".toml" or len(path.parts) > 1:
        raise ValueError(f"the recipe file must exist, got recipe={show(name)}.")
    raise ValueError(f"unknown recipe {show(name)}; {suggest(name, shipped)}")


def load_recipe(name: str) -> RunConfig:
    """Read and check a recipe.

    Raises:
        ValueError: no such recipe, not TOML, or a key or a value that does not belong.
    """
    text = read_recipe(name)
    try:
        values = tomllib.loads(text)
    except RecursionError:
        raise ValueError(f"recipe {name} is not valid TOML: it is nested too deeply.") from None
    except ValueError as error:  # of tomllib, or of an int with thousands of digits
        raise ValueError(f"recipe {name} is not valid TOML: {error}.") from None
    return config_from_dict({**values, "recipe": name}, where=f"recipe {name}")


def _wish(path: Path) -> str:
    """What somebody may have meant who gave data, or a run, for a recipe."""
    where = shlex.quote(str(path))
    if (path / "config.json").is_file():
        return f"to go on with a run: foveal train --resume {where}"
    recipe = "images-halonet" if path.is_dir() else "bytes-transformer"
    return f"to train on data of your own: foveal train {recipe} --data {where}"


def summary_of(name: str) -> str:
    """The first comment line of a recipe: what it does."""
    first = read_recipe(name).splitlines()[0]
    return first.lstrip("# ").strip()


def config_from_dict(values: Mapping[str, Any], where: str) -> RunConfig:
    """Build a configuration from a dictionary, strictly; `where` names its origin in errors."""
    check_keys(values, ("recipe", "task", *SECTIONS), where)
    task = values.get("task", "bytes")
    kind = find_kind(task, where)
    for section in SECTIONS:
        if not isinstance(values.get(section, {}), Mapping):
            got = show(values[section])
            raise ValueError(f"{section} must be a table in {where}, got {got}.")
    recipe = values.get("recipe", "")
    if not isinstance(recipe, str):
        raise ValueError(f"recipe must be text in {where}, got {show(recipe)}.")
    model = plain_table(values.get("model", {}), f"[model] of {where}")
    if not isinstance(model.get("name"), str):
        raise ValueError(f"[model] of {where} must name the model: name = 'TransformerLM'.")
    return RunConfig(
        recipe=recipe,
        task=task,
        model=model,
        data=from_dict(kind.data, values.get("data", {}), f"[data] of {where}"),
        optimizer=from_dict(
            OptimizerConfig, values.get("optimizer", {}), f"[optimizer] of {where}"
        ),
        training=from_dict(TrainingConfig, values.get("training", {}), f"[training] of {where}"),
        parallel=from_dict(ParallelConfig, values.get("parallel", {}), f"[parallel] of {where}"),
    )


def plain_table(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A table whose values JSON can hold; ValueError, naming the key, for others."""
    return {key: _plain(value, f"{key} in {where}") for key, value in table.items()}


def _plain(value: Any, name: str, depth: int = 0) -> Any:
    """What JSON can hold, with lists for tuples; so that a run can be written and read again."""
    if depth > _DEEPEST:
        raise ValueError(f"{name} must not be nested so deeply.")
    if isinstance(value, list | tuple):
        return [_plain(one, name, depth + 1) for one in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(one, name, depth + 1) for key, one in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value}.")
    if isinstance(value, int) and not abs(value) < _LARGEST_INT:
        raise ValueError(f"{name} must be a number below {_LARGEST_INT:.0e}, got {show(value)}.")
    if not isinstance(value, str | int | float | None):
        raise ValueError(
            f"{name} must be made of numbers, text, true and false, lists and tables, got "
            f"{show(value)}."
        )
    return value


_EMBEDDED = (STANDARD_LIBRARY, EMOJI, LISTOPS)
_HUB_FOLDER = re.compile(r"hf(-stream)?:\w+:")
_PATHS, _STAGES = ("path", "valid"), ("vae", "clip")


def absolute_paths(config: RunConfig) -> RunConfig:
    """The configuration with every path that it names made absolute; other names stay.

    Raises:
        ValueError: an empty path, which would mean the present folder.
    """
    if getattr(config.data, "path", None) == "":
        raise ValueError("data.path must name the data, got data.path=''.")
    given = {name: getattr(config.data, name, None) for name in (*_PATHS, *_STAGES)}
    data = {
        name: absolute_path(value)
        for name, value in given.items()
        if isinstance(value, str) and not (name in _STAGES and _is_recipe(value))
    }
    recipe = config.recipe if _is_recipe(config.recipe) else absolute_path(config.recipe)
    return dataclasses.replace(
        config, recipe=recipe, data=dataclasses.replace(config.data, **data)
    )


def functions_of(config: RunConfig) -> set[str]:
    """The functions of users that training a configuration imports, its first stages included."""
    named = {getattr(config.data, "transform", "")}
    for stage in _STAGES:
        source = getattr(config.data, stage, "")
        if source and not (Path(source) / "config.json").is_file():
            with contextlib.suppress(ValueError, OSError):  # told when it is trained
                named.add(getattr(load_recipe(source).data, "transform", ""))
    return named - {""}


def _is_recipe(name: str) -> bool:
    """Whether it is a recipe of the package, and no model's folder of that name stands here."""
    return name in recipe_names() and not (Path(name) / "config.json").is_file()


def absolute_path(name: str) -> str:
    """An absolute path for what is a file, a folder, a glob or a list of archives here."""
    if not name or name in _EMBEDDED or is_remote(name):
        return name
    if hub := _HUB_FOLDER.match(name):
        return hub[0] + absolute_path(name[hub.end() :])
    plain = os.path.expanduser(name)
    if os.path.isabs(plain):
        return plain
    try:
        if Path(plain).exists():
            return os.path.abspath(plain)
    except (OSError, ValueError):  # too long, or with a null byte: no path
        return name
    if glob.has_magic(plain) or "{" in plain:
        # the folder itself may have characters that mean something in a pattern
        return os.path.join(glob.escape(os.getcwd()), plain)
    return name
