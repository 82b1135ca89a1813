"""Models that a run needs before its own training: found, or trained by a recipe first.

They are kept inside the run's folder, so that it needs nothing else.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn

from foveal.common.files import expanded, write_folder
from foveal.models import Model, load_model
from foveal.recipes.assets import TOKENIZER
from foveal.recipes.build import build_model
from foveal.recipes.config import load_recipe
from foveal.recipes.kind import require_task
from foveal.recipes.runs import load_config
from foveal.recipes.runs import load_model as load_run
from foveal.recipes.settings import RunConfig
from foveal.training.config import TrainingConfig, check_batch, check_training
from foveal.training.interrupt import Interrupted
from foveal.training.processes import from_first

_INHERITED = ("path", "valid", "column", "size", "held_out", "max_images")


def check_stage(config: RunConfig, task: str, num_pictures: int) -> nn.Module:
    """A model like that of a stage, untrained if it has to be trained first.

    Args:
        config, task: as for `prepare_stage`.
        num_pictures: how many there are to train on.

    Raises:
        ValueError: the setting names no run, model or recipe, or one of another kind; or a recipe
            that makes no run.
    """
    source = _source(config, task)
    if (source / "config.json").is_file():
        return _load(source, config, task)
    stage = _stage_config(config, task)
    check_training(stage.training, stage.optimizer)
    check_batch(stage.training, num_pictures)
    return build_model(
        stage.model,
        f"recipe {stage.recipe}",
        image_size=stage.data.size,
        visual_image_size=stage.data.size,
    )


def prepare_stage(config: RunConfig, folder: Path, task: str, train: Callable[..., Any]) -> Model:
    """The model of a stage, from `folder`/`task`; found or trained first if it is not there.

    Args:
        config: of the run that needs it; its data setting of the stage's name says where from: a
            run folder, a folder written by save_pretrained, or a recipe.
        folder: of the run that needs it.
        task: "vae" or "clip".
        train: `foveal.recipes.run.train`.

    Raises:
        ValueError: the setting names none of these, or a run of another kind.
        Interrupted: asked to stop while training; goes on at the same place when resumed.
    """
    home, source, state = folder / task, _source(config, task), PartialState()

    def is_there() -> bool:
        return (home / "model.safetensors").is_file() or (source / "config.json").is_file()

    def bring() -> Model:
        if not (home / "model.safetensors").is_file():
            _copy(source, home, config, task)
        return load_model(home)

    if not from_first(state, is_there):
        source = _train(config, folder, task, train)
    return from_first(state, bring)  # the others may not see the folder


def _source(config: RunConfig, task: str) -> Path:
    return expanded(str(getattr(config.data, task)))


def _stage_config(config: RunConfig, task: str) -> RunConfig:
    """The recipe of a stage, on the same data, with a budget like that of the run."""
    recipe = str(getattr(config.data, task))
    stage = load_recipe(recipe)
    if stage.task != task:
        raise ValueError(
            f"data.{task}={recipe!r} must be a recipe of the task {task!r}, but it trains "
            f"{stage.task!r}."
        )
    inherited = {name: getattr(config.data, name) for name in _INHERITED}
    if task == "clip":
        inherited["text_length"] = config.data.text_length
    training = dataclasses.replace(
        scale_budget(stage.training, config),
        device=config.training.device,
        trackers=config.training.trackers,
    )
    data = dataclasses.replace(stage.data, **inherited)
    return dataclasses.replace(stage, data=data, training=training)


def scale_budget(stage: TrainingConfig, config: RunConfig) -> TrainingConfig:
    """The budget of a stage in a run that is shorter or longer than its recipe says.

    A run with half of the time of its recipe gives its stages half of theirs. One that is given
    steps, where its recipe has time, gives them steps in the proportion of the times.
    """
    try:
        usual = load_recipe(config.recipe).training
    except (ValueError, OSError):  # made in Python, or a file that is gone
        return stage
    now = config.training
    budgets = ((now.time_budget, usual.time_budget), (now.steps, usual.steps))
    share = min((ours / theirs for ours, theirs in budgets if ours and theirs), default=1.0)
    time = stage.time_budget and stage.time_budget * share
    steps = stage.steps and max(1, math.ceil(stage.steps * share))
    if now.steps and not usual.steps and not stage.steps:
        times = (stage.time_budget or 1.0) / (usual.time_budget or 1.0)
        steps = max(1, math.ceil(now.steps * times))
    return dataclasses.replace(stage, time_budget=time, steps=steps)


def _train(config: RunConfig, folder: Path, task: str, train: Callable[..., Any]) -> Path:
    """Train a recipe on the same data in a run folder inside the run's."""
    stage = _stage_config(config, task)
    try:
        home: Path = train(stage, str(folder / f"{task}-training"), resume=True)[0]
        return home
    except Interrupted as stop:
        raise Interrupted(stop.step, folder, stop.is_main) from None


def _load(source: Path, config: RunConfig, task: str) -> nn.Module:
    """A saved model, or the model of a run of the right kind."""
    if (source / "model.safetensors").is_file():
        return load_model(source)
    of_run = load_config(source)
    require_task(of_run, task, f"data.{task}={str(source)!r}")
    with torch.device("cpu"):  # weights that are read need a place, whatever is only sized up
        return load_run(source, of_run)[0]


def _copy(source: Path, home: Path, config: RunConfig, task: str) -> None:
    """Copy a saved model, or the model of a run, and the tokenizer beside it."""
    model: Any = _load(source, config, task)

    def write(folder: Path) -> None:
        if (source / TOKENIZER).is_file():
            shutil.copyfile(source / TOKENIZER, folder / TOKENIZER)
        model.save_pretrained(folder)

    write_folder(home, write)
