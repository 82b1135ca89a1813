"""What the commands do with runs of image classifiers."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from foveal.common.inputs import reading
from foveal.data.augment import to_floats
from foveal.data.image_sources import images_to_score
from foveal.data.pictures import load_square
from foveal.data.sequence_sources import sequences_to_score
from foveal.recipes.assets import class_names
from foveal.recipes.images import (
    ImageEvaluation,
    Prediction,
    classify,
    most_images,
    predict_pictures,
    score_images,
)
from foveal.recipes.runs import load_config
from foveal.recipes.scoring import keep_result, open_model, sample
from foveal.recipes.sequences import MOST_SEQUENCES, classify_sequences
from foveal.recipes.tasks import CLASSIFIERS, require_task
from foveal.training.progress import showing


def evaluate_images(
    folder: Path, *, data: str | None = None, full: bool = False, device: str = "auto"
) -> ImageEvaluation:
    """Score a run on its held-out pictures or sequences, in float32, and keep the result.

    Args:
        data: score other data with classes of the run: their test or validation part, or all.
        full: score everything, and not a sample of 10,000 passes.
        device: see `foveal.training.machine.pick_device`.
    """
    config = load_config(folder)
    if config.task not in CLASSIFIERS:
        require_task(config, "images", "top-1 accuracy")
    model, checkpoint = open_model(folder, config, device)
    classes = class_names(folder)
    with showing("reading"), reading(f"data={config.data.path if data is None else data!r}"):
        if config.task == "sequences":
            found: Any = sequences_to_score(config.data, data, classes)
            found = sample(found, 0 if full else MOST_SEQUENCES, "sequences")
        else:
            found = images_to_score(config.data, data, classes)
            found = sample(found, 0 if full else most_images(config.data.views), "pictures")
    with showing("scoring"):
        if config.task == "sequences":
            result = score_images(
                model, found, checkpoint, classes, classify_sequences, "sequences"
            )
        else:
            look = functools.partial(classify, views=config.data.views)
            result = score_images(model, found, checkpoint, classes, look)
    keep_result(folder, result.to_dict())
    return result


def predict(
    folder: Path, paths: Sequence[str], top: int = 5, device: str = "auto"
) -> list[Prediction]:
    """The likeliest classes of picture files."""
    config = load_config(folder)
    require_task(config, "images", "predict")
    model, _ = open_model(folder, config, device)
    with showing("reading"):
        return predict_pictures(
            model, paths, config.data.size, class_names(folder), top, config.data.views
        )


def draw_run_attention(
    folder: Path, image: str, at: Sequence[tuple[int, int]], output: Path, device: str = "auto"
) -> list[Path]:
    """Pictures of where pixels of an image look, one for each pixel.

    Args:
        at: (row, column) of pixels; none for the middle.
        output: path of the first; further ones have a number before the suffix.
    """
    from foveal.draw.attention import draw_attention, record_attention

    config = load_config(folder)
    require_task(config, "images", "draw attention")
    model, _ = open_model(folder, config, device)
    pixels = load_square(image, config.data.size)
    chosen = list(at) or [(config.data.size // 2, config.data.size // 2)]
    inputs = to_floats(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    layers = record_attention(model, inputs.to(next(model.parameters()).device), chosen)
    paths = []
    for number, place in enumerate(chosen):
        path = output if number == 0 else output.with_stem(f"{output.stem}-{number + 1}")
        paths.append(draw_attention(pixels, layers, number, place, path))
    return paths
