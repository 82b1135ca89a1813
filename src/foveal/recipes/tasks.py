"""Which task a configuration is about, and how its model is made again from a run folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from foveal.recipes.config import RunConfig

if TYPE_CHECKING:
    from foveal.data.tokens import CaptionTokenizer

CLASSIFIERS = ("images", "sequences")
"""Tasks whose runs know the names of their classes."""

CAPTION_TASKS = ("vae", "clip", "captions")
"""The tasks on captioned pictures."""


def make_task(config: RunConfig, folder: Path, rank: int = 0, world_size: int = 1) -> Any:
    """The `foveal.training.task.Task` of a configuration.

    Args:
        folder: of the run. Only tasks that train other models first write there.
    """
    if config.task == "images":
        from foveal.recipes.images import ImageTask

        return ImageTask(config, rank, world_size)
    if config.task == "sequences":
        from foveal.recipes.sequences import SequenceTask

        return SequenceTask(config, rank, world_size)
    if config.task == "vae":
        from foveal.recipes.vae import VAETask

        return VAETask(config, rank, world_size)
    if config.task == "clip":
        from foveal.recipes.clip import ClipTask

        return ClipTask(config, rank, world_size)
    if config.task == "captions":
        from foveal.recipes.dalle import DalleTask

        return DalleTask(config, folder, rank, world_size)
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
    if config.task == "sequences":
        from foveal.recipes.sequences import NUM_TOKENS, build_sequence_model

        return build_sequence_model(
            config, len(class_names(folder)), int(_read(folder / NUM_TOKENS))
        )
    if config.task == "vae":
        from foveal.recipes.vae import build_vae

        return build_vae(config)
    if config.task == "clip":
        from foveal.recipes.clip import build_clip

        return build_clip(config, tokenizer_of(folder))
    if config.task == "captions":
        from foveal.models import load_model
        from foveal.recipes.dalle import build_dalle

        vae: Any = load_model(folder / "vae")
        return build_dalle(config, vae, tokenizer_of(folder))
    if config.task == "pixels":
        from foveal.recipes.pixels import build_pixel_model

        return build_pixel_model(config)
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


def tokenizer_of(folder: Path) -> CaptionTokenizer:
    """The byte pairs of a run on captions.

    Raises:
        ValueError: the run has none, or the file is damaged.
    """
    from foveal.data.tokens import CaptionTokenizer
    from foveal.recipes.stages import TOKENIZER

    return CaptionTokenizer.from_file(folder / TOKENIZER)


def require_task(config: RunConfig, task: str, what: str) -> None:
    """Raise ValueError unless a run is of the kind that a command works on."""
    if config.task != task:
        raise ValueError(
            f"{what} needs a run of the task {task!r}, but this one trains {config.task!r}; "
            "name another run."
        )
