"""What the commands do with runs of image classifiers."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import torch

from foveal.data.augment import to_floats
from foveal.data.image_sources import open_images
from foveal.data.pictures import load_square
from foveal.recipes.assets import class_names
from foveal.recipes.images import (
    ImageEvaluation,
    Prediction,
    classify,
    predict_pictures,
    score_images,
)
from foveal.recipes.report import write_run_report
from foveal.recipes.result import EVALUATION
from foveal.recipes.runs import load_config, load_model, write_json
from foveal.recipes.sequences import score_run
from foveal.recipes.tasks import CLASSIFIERS, require_task
from foveal.training.machine import pick_device


def evaluate_images(folder: Path, *, data: str | None = None) -> ImageEvaluation:
    """Score a run on its held-out pictures or sequences, in float32, and keep the result.

    Args:
        data: score the held-out part of other data with the same classes.
    """
    config = load_config(folder)
    if config.task not in CLASSIFIERS:
        require_task(config, "images", "top-1 accuracy")
    model, last = load_model(folder, config)
    model = model.to(pick_device())
    if config.task == "sequences":
        result = score_run(folder, config, model, last.name, data)
    else:
        source = config.data if data is None else dataclasses.replace(config.data, path=data)
        images = open_images(source)[1]
        look = functools.partial(classify, views=config.data.views)
        result = score_images(model, images, last.name, class_names(folder), look)
    write_json(folder / EVALUATION, result.to_dict())
    write_run_report(folder)
    return result


def predict(folder: Path, paths: Sequence[str], top: int = 5) -> list[Prediction]:
    """The likeliest classes of picture files."""
    config = load_config(folder)
    require_task(config, "images", "predict")
    model, _ = load_model(folder, config)
    return predict_pictures(
        model.to(pick_device()),
        paths,
        config.data.size,
        class_names(folder),
        top,
        config.data.views,
    )


def draw_run_attention(
    folder: Path, image: str, at: Sequence[tuple[int, int]], output: Path
) -> list[Path]:
    """Pictures of where pixels of an image look, one for each pixel.

    Args:
        at: (row, column) of pixels; none for the middle.
        output: path of the first; further ones have a number before the suffix.
    """
    from foveal.draw.attention import draw_attention, record_attention

    config = load_config(folder)
    require_task(config, "images", "draw attention")
    model, _ = load_model(folder, config)
    pixels = load_square(image, config.data.size)
    chosen = list(at) or [(config.data.size // 2, config.data.size // 2)]
    inputs = to_floats(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    layers = record_attention(model, inputs, chosen)
    paths = []
    for number, place in enumerate(chosen):
        path = output if number == 0 else output.with_stem(f"{output.stem}-{number + 1}")
        paths.append(draw_attention(pixels, layers, number, place, path))
    return paths
