"""The kinds of runs: for each task, what trains, what makes its model again, what ends a run.

A new task is a line of TASKS, a dataclass in `recipes.config.DATA_OF_TASK`, and a module.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from foveal.recipes.config import RunConfig


@dataclass(frozen=True)
class TaskKind:
    """Where the parts of a task are, as "module:name" in foveal.recipes, imported when needed.

    Attributes:
        task: class of the `foveal.training.task.Task`: (config, rank, world_size) -> task. Making
            it writes nothing and finds every fault of the configuration. If it trains other
            models first, it has `check()`, which finds their faults, and `prepare(folder)`, which
            does so in the folder of the run. `save_assets(folder)`, if it has that, writes what
            `rebuild` reads.
        rebuild: (config, folder of a run) -> its model, with fresh weights.
        finish: (folder, task, config), adds samples or pictures to a run that has ended.
    """

    task: str
    rebuild: str
    finish: str = ""


TASKS = {
    "bytes": TaskKind("bytes:ByteTask", "bytes:rebuild", "run:finish_bytes"),
    "images": TaskKind("images:ImageTask", "images:rebuild"),
    "sequences": TaskKind("sequences:SequenceTask", "sequences:rebuild"),
    "vae": TaskKind("vae:VAETask", "vae:rebuild", "caption_runs:finish_captions"),
    "clip": TaskKind("clip:ClipTask", "clip:rebuild", "caption_runs:finish_captions"),
    "captions": TaskKind("dalle:DalleTask", "dalle:rebuild", "caption_runs:finish_captions"),
    "pixels": TaskKind("pixels:PixelTask", "pixels:rebuild", "pixel_runs:finish_pixels"),
}

CLASSIFIERS = ("images", "sequences")
"""Tasks whose runs know the names of their classes."""

CAPTION_TASKS = ("vae", "clip", "captions")
"""The tasks on captioned pictures."""


def make_task(config: RunConfig, rank: int = 0, world_size: int = 1) -> Any:
    """The `foveal.training.task.Task` of a configuration."""
    return _find(TASKS[config.task].task)(config, rank=rank, world_size=world_size)


def build_task_model(config: RunConfig, folder: Path) -> nn.Module:
    """The model of a run, with fresh weights.

    Raises:
        ValueError: the folder lacks what the model is made of.
    """
    model: nn.Module = _find(TASKS[config.task].rebuild)(config, folder)
    return model


def finish(folder: Path, task: Any, config: RunConfig) -> None:
    """Add what a run of this kind shows besides its results, once it has ended."""
    kind = TASKS[config.task]
    if kind.finish:
        _find(kind.finish)(folder, task, config)


def _find(place: str) -> Any:
    module, name = place.split(":")
    return getattr(importlib.import_module(f"foveal.recipes.{module}"), name)


def require_task(config: RunConfig, task: str, what: str) -> None:
    """Raise ValueError unless a run is of the kind that a command works on."""
    if config.task != task:
        raise ValueError(
            f"{what} needs a run of the task {task!r}, but this one trains {config.task!r}; "
            "name another run."
        )
