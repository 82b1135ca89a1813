"""Which task a configuration is about, and how its model is made again from a run folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from foveal.recipes.config import RunConfig


def make_task(config: RunConfig, rank: int = 0, world_size: int = 1) -> Any:
    """The `foveal.training.task.Task` of a configuration."""
    if config.task == "images":
        from foveal.recipes.images import ImageTask

        return ImageTask(config, rank, world_size)
    if config.task == "pixels":
        from foveal.recipes.pixels import PixelTask

        return PixelTask(config, rank, world_size)
    from foveal.recipes.bytes import ByteTask

    return ByteTask(config, rank, world_size)


def build_task_model(config: RunConfig, folder: Path) -> nn.Module:
    """The model of a run, with fresh weights.

    Raises:
        ValueError: the folder lacks the names of the classes.
    """
    if config.task == "images":
        from foveal.recipes.images import build_image_model

        return build_image_model(config, len(class_names(folder)))
    if config.task == "pixels":
        from foveal.recipes.pixels import build_pixel_model

        return build_pixel_model(config)
    from foveal.recipes.bytes import build_byte_model

    return build_byte_model(config)


def class_names(folder: Path) -> list[str]:
    """The classes of an image run.

    Raises:
        ValueError: the run has none, or the file is damaged.
    """
    from foveal.recipes.images import CLASSES

    path = folder / CLASSES
    try:
        return [str(name) for name in json.loads(path.read_text(encoding="utf-8"))]
    except FileNotFoundError:
        raise ValueError(f"the run {folder} has no {CLASSES}; train it again.") from None
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from None


def require_task(config: RunConfig, task: str, what: str) -> None:
    """Raise ValueError unless a run is of the kind that a command works on."""
    if config.task != task:
        raise ValueError(
            f"{what} needs a run of the task {task!r}, but this one trains {config.task!r}; "
            "name another run."
        )
