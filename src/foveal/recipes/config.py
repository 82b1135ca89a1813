"""The complete configuration of a run, and the TOML recipes it starts from."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from foveal.common.files import read_text
from foveal.common.words import suggest
from foveal.data.captions import CaptionDataConfig, DalleDataConfig, PictureDataConfig
from foveal.data.images import ImageDataConfig
from foveal.data.pixels import PixelDataConfig
from foveal.data.sequences import SequenceDataConfig
from foveal.data.text import TextConfig
from foveal.training.config import (
    OptimizerConfig,
    TrainingConfig,
    check_keys,
    from_dict,
    show,
)

DATA_OF_TASK: dict[str, type] = {
    "bytes": TextConfig,
    "images": ImageDataConfig,
    "sequences": SequenceDataConfig,
    "vae": PictureDataConfig,
    "clip": CaptionDataConfig,
    "captions": DalleDataConfig,
    "pixels": PixelDataConfig,
}
"""The dataclass of the [data] section, by task."""

_LARGEST_RECIPE = 1 << 20
_LARGEST_INT = 2**63
_DEEPEST = 20
_SECTIONS = ("task", "model", "data", "optimizer", "training")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides a run.

    Attributes:
        recipe: the recipe it came from: a shipped name, or a path.
        task: what is trained; a key of `DATA_OF_TASK`.
        model: `name` of a model, and its constructor's arguments as TOML and JSON can hold them.
        data: where the examples come from; the task's own dataclass.
        optimizer, training: see there.
    """

    recipe: str
    task: str = "bytes"
    model: dict[str, Any] = field(default_factory=dict)
    data: Any = field(default_factory=TextConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    folder = resources.files("foveal.recipes")
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in folder.iterdir()
        if entry.name.endswith(".toml")
    )


def read_recipe(name: str) -> str:
    """The text of a recipe: a shipped name, or a path to a TOML file.

    Raises:
        ValueError: there is no such recipe.
    """
    if name in recipe_names():
        return (resources.files("foveal.recipes") / f"{name}.toml").read_text(encoding="utf-8")
    path = Path(name).expanduser()
    if os.path.lexists(path):
        return read_text(path, _LARGEST_RECIPE)
    if path.suffix == ".toml" or len(path.parts) > 1:
        raise ValueError(f"the recipe file must exist, got recipe={show(name)}.")
    raise ValueError(f"unknown recipe {show(name)}; {suggest(name, recipe_names())}")


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


def summary_of(name: str) -> str:
    """The first comment line of a recipe: what it does."""
    first = read_recipe(name).splitlines()[0]
    return first.lstrip("# ").strip()


def config_from_dict(values: Mapping[str, Any], where: str) -> RunConfig:
    """Build a configuration from a dictionary, strictly; `where` names its origin in errors."""
    check_keys(values, ("recipe", *_SECTIONS), where)
    task = values.get("task", "bytes")
    if not isinstance(task, str) or task not in DATA_OF_TASK:
        hint = suggest(show(task), DATA_OF_TASK)
        raise ValueError(f"unknown task {show(task)} in {where}; {hint}")
    for section in _SECTIONS[1:]:
        if not isinstance(values.get(section, {}), Mapping):
            got = show(values[section])
            raise ValueError(f"{section} must be a table in {where}, got {got}.")
    recipe = values.get("recipe", "")
    if not isinstance(recipe, str):
        raise ValueError(f"recipe must be text in {where}, got {show(recipe)}.")
    model = {
        key: _plain(value, f"{key} in [model] of {where}")
        for key, value in values.get("model", {}).items()
    }
    if not isinstance(model.get("name"), str):
        raise ValueError(f"[model] of {where} must name the model: name = 'TransformerLM'.")
    return RunConfig(
        recipe=recipe,
        task=task,
        model=model,
        data=from_dict(DATA_OF_TASK[task], values.get("data", {}), f"[data] of {where}"),
        optimizer=from_dict(
            OptimizerConfig, values.get("optimizer", {}), f"[optimizer] of {where}"
        ),
        training=from_dict(TrainingConfig, values.get("training", {}), f"[training] of {where}"),
    )


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


def first_difference(saved: Mapping[str, Any], given: Mapping[str, Any]) -> str | None:
    """The first setting, as 'a.b', in which two configurations would train differently.

    Budgets may differ, so that a finished run can be prolonged, and so may what only watches.
    """
    for section in sorted({*saved, *given} - {"recipe"}):
        left, right = saved.get(section), given.get(section)
        if not isinstance(left, Mapping) or not isinstance(right, Mapping):
            if left != right:
                return section
            continue
        for key in sorted({*left, *right}):
            if f"{section}.{key}" not in _MAY_CHANGE and left.get(key) != right.get(key):
                return f"{section}.{key}"
    return None


_MAY_CHANGE = {
    *("training.steps", "training.time_budget", "training.log_every", "training.evaluate_every"),
    *("training.checkpoint_every", "training.checkpoint_seconds", "training.keep"),
    *("training.device", "training.compile"),
}
