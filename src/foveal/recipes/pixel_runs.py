"""What the commands do with runs of pixel language models."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from foveal.data.pictures import load_square
from foveal.data.pixels import open_pixels
from foveal.draw.grid import draw_grid
from foveal.recipes.config import RunConfig
from foveal.recipes.pixel_report import COMPLETIONS, SAMPLES
from foveal.recipes.pixels import (
    PixelEvaluation,
    PixelTask,
    complete_pictures,
    draw_pictures,
    evaluate_model,
    scored,
)
from foveal.recipes.report import PICTURES, write_run_report
from foveal.recipes.result import EVALUATION
from foveal.recipes.runs import load_config, load_model, write_json
from foveal.recipes.tasks import require_task
from foveal.training.machine import pick_device

_COUNT, _COLUMNS = 8, 4


def finish_pixels(folder: Path, task: PixelTask, config: RunConfig) -> None:
    """Draw some pictures of a run that has ended."""
    pictures = folder / PICTURES
    pictures.mkdir(exist_ok=True)
    model, size = task.model.eval(), config.data.size
    _draw_grid(draw_pictures(model, _COUNT, size, seed=0), pictures / SAMPLES)
    originals = task.valid_images.read(scored(task.valid_images, _COLUMNS))
    completed = complete_pictures(model, originals, size // 2, seed=0)
    _draw_grid(torch.cat((originals, completed)), pictures / COMPLETIONS)


def evaluate_pixels(folder: Path, *, data: str | None = None) -> PixelEvaluation:
    """Score a run on its held-out pictures, in float32, and keep the result in its folder.

    Args:
        data: score the held-out part of other pictures.
    """
    config, model, checkpoint = _load(folder, "bits per dimension")
    source = config.data if data is None else dataclasses.replace(config.data, path=data)
    images = open_pixels(source)[1]
    result = evaluate_model(model, images, config.data.scored_images, checkpoint)
    write_json(folder / EVALUATION, result.to_dict())
    write_run_report(folder)
    return result


def generate_pictures(
    folder: Path, prompt: str, output: Path | None = None, count: int = _COUNT, **sampling: Any
) -> Path:
    """Draw pictures, or complete the lower half of the picture file `prompt`, into one PNG."""
    config, model, _ = _load(folder, "generate")
    size = config.data.size
    if prompt:
        given = torch.from_numpy(load_square(prompt, size)).permute(2, 0, 1)
        images = given.expand(count, -1, -1, -1)
        drawn = complete_pictures(model, images, size // 2, **sampling)
    else:
        drawn = draw_pictures(model, count, size, **sampling)
    (folder / PICTURES).mkdir(exist_ok=True)
    path = folder / PICTURES / (COMPLETIONS if prompt else SAMPLES) if output is None else output
    return _draw_grid(drawn, path)


def _load(folder: Path, what: str) -> tuple[RunConfig, Any, str]:
    config = load_config(folder)
    require_task(config, "pixels", what)
    model, last = load_model(folder, config)
    return config, model.to(pick_device()), last.name


def _draw_grid(images: torch.Tensor, path: Path) -> Path:
    return draw_grid(images.permute(0, 2, 3, 1).numpy(), path, columns=_COLUMNS)
