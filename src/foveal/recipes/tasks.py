"""Which task a configuration is about, and how its model is made again from a run folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from foveal.recipes.config import RunConfig

CLASSIFIERS = ("images", "sequences")
"""Tasks whose runs know the names of their classes."""


def make_task(config: RunConfig, rank: int = 0, world_size: int = 1) -> Any:
    """The `foveal.training.task.Task` of a configuration."""
    if config.task == "images":
        from foveal.recipes.images import ImageTask

        return ImageTask(config, rank, world_size)
    if config.task == "sequences":
        from foveal.recipes.sequences import SequenceTask

        return SequenceTask(config, rank, world_size)
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
    if config.task == "sequences":
        from foveal.recipes.sequences import NUM_TOKENS, build_sequence_model

        return build_sequence_model(
            config, len(class_names(folder)), int(_read(folder / NUM_TOKENS))
        )
    from foveal.recipes.bytes import build_byte_model

    return build_byte_model(config)


def class_names(folder: Path) -> list[str]:
    """The classes of a classifier's run.

    Raises:
        ValueError: the run has none, or the file is damaged.
    """
    from foveal.recipes.images import CLASSES

    return [str(name) for name in _read(folder / CLASSES)]


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"the run {path.parent} has no {path.name}; train it again.") from None
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from None


def require_task(config: RunConfig, task: str, what: str) -> None:
    """Raise ValueError unless a run is of the kind that a command works on."""
    if config.task != task:
        raise ValueError(
            f"{what} needs a run of the task {task!r}, but this one trains {config.task!r}; "
            "name another run."
        )
