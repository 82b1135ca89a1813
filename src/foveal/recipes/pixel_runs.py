"""What the commands do with runs of pixel language models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from foveal.common.inputs import reading
from foveal.data.pictures import load_square
from foveal.data.pixels import pixels_to_score
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
from foveal.recipes.report import PICTURES
from foveal.recipes.runs import load_config
from foveal.recipes.scoring import keep_result, open_model
from foveal.recipes.tasks import require_task
from foveal.training.progress import showing

_COUNT, _COLUMNS, _MOST = 8, 4, 256


def finish_pixels(folder: Path, task: PixelTask, config: RunConfig) -> None:
    """Draw some pictures of a run that has ended."""
    pictures = folder / PICTURES
    pictures.mkdir(exist_ok=True)
    model, size = task.model.eval(), config.data.size
    _draw_grid(draw_pictures(model, _COUNT, size, seed=0), pictures / SAMPLES)
    originals = task.valid_images.read(scored(task.valid_images, _COLUMNS))
    completed = complete_pictures(model, originals, size // 2, seed=0)
    _draw_grid(torch.cat((originals, completed)), pictures / COMPLETIONS)


def evaluate_pixels(
    folder: Path, *, data: str | None = None, full: bool = False, device: str = "auto"
) -> PixelEvaluation:
    """Score a run on its held-out pictures, in float32, and keep the result in its folder.

    Args:
        data: score other pictures: their test or validation part, or all of them.
        full: score everything, and not `data.scored_images` of them.
        device: see `foveal.training.machine.pick_device`.
    """
    config, model, checkpoint = _load(folder, "bits per dimension", device)
    with showing("reading"), reading(f"data={config.data.path if data is None else data!r}"):
        images = pixels_to_score(config.data, data)
    with showing("scoring"):
        limit = 0 if full else config.data.scored_images
        result = evaluate_model(model, images, limit, checkpoint)
    keep_result(folder, result.to_dict())
    return result


def generate_pictures(
    folder: Path,
    prompt: str,
    output: Path | None = None,
    count: int = _COUNT,
    device: str = "auto",
    **sampling: Any,
) -> Path:
    """Draw pictures, or complete the lower half of the picture file `prompt`, into one PNG."""
    if not 1 <= count <= _MOST:
        raise ValueError(f"length must be from 1 to {_MOST} pictures, got {count}.")
    config, model, _ = _load(folder, "generate", device)
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


def _load(folder: Path, what: str, device: str) -> tuple[RunConfig, Any, str]:
    config = load_config(folder)
    require_task(config, "pixels", what)
    return config, *open_model(folder, config, device)


def _draw_grid(images: torch.Tensor, path: Path) -> Path:
    return draw_grid(images.permute(0, 2, 3, 1).numpy(), path, columns=_COLUMNS)
