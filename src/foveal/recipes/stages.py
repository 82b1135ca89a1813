"""Models that a run needs before its own training: found, or trained by a recipe first.

They are kept inside the run's folder, so that it needs nothing else.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from accelerate import PartialState

from foveal.models import Model, load_model
from foveal.recipes.assets import TOKENIZER
from foveal.recipes.config import RunConfig, load_recipe
from foveal.training.interrupt import Interrupted

_INHERITED = ("path", "size", "held_out", "max_images")


def prepare_stage(config: RunConfig, folder: Path, task: str) -> Model:
    """The model of a stage, from `folder`/`task`; found or trained first if it is not there.

    Args:
        config: of the run that needs it; its data setting of the stage's name says where from: a
            run folder, a folder written by save_pretrained, or a recipe.
        folder: of the run that needs it.
        task: "vae" or "clip".

    Raises:
        ValueError: the setting names none of these, or a run of another kind.
        Interrupted: asked to stop while training; goes on at the same place when resumed.
    """
    home, choice = folder / task, str(getattr(config.data, task))
    if not (home / "model.safetensors").is_file():
        source = Path(choice).expanduser()
        if not (source / "config.json").is_file():
            source = _train(config, folder, task, choice)
        with PartialState().main_process_first():
            if not (home / "model.safetensors").is_file():
                _copy(source, home, task)
    return load_model(home)


def _train(config: RunConfig, folder: Path, task: str, recipe: str) -> Path:
    """Train a recipe on the same data in a run folder inside the run's."""
    from foveal.recipes.run import train

    stage = load_recipe(recipe)
    if stage.task != task:
        raise ValueError(
            f"data.{task}={recipe!r} must be a recipe of the task {task!r}, but it trains "
            f"{stage.task!r}."
        )
    inherited = {name: getattr(config.data, name) for name in _INHERITED}
    if task == "clip":
        inherited["text_length"] = config.data.text_length
    training = dataclasses.replace(stage.training, device=config.training.device)
    data = dataclasses.replace(stage.data, **inherited)
    stage = dataclasses.replace(stage, data=data, training=training)
    try:
        return train(stage, str(folder / f"{task}-training"), resume=True)[0]
    except Interrupted as stop:
        raise Interrupted(stop.step, folder) from None


def _copy(source: Path, home: Path, task: str) -> None:
    """Copy a saved model, or the model of a run, and the tokenizer beside it."""
    from foveal.recipes.runs import load_config
    from foveal.recipes.runs import load_model as load_run
    from foveal.recipes.tasks import require_task

    if (source / "model.safetensors").is_file():
        model: Any = load_model(source)
    else:
        of_run = load_config(source)
        require_task(of_run, task, f"data.{task}={str(source)!r}")
        model, _ = load_run(source, of_run)
    home.mkdir(parents=True, exist_ok=True)
    if (source / TOKENIZER).is_file():
        shutil.copyfile(source / TOKENIZER, home / TOKENIZER)
    model.save_pretrained(home)
