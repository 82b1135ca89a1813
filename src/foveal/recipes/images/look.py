"""What image classifiers say of single pictures, and where they look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foveal.common import html
from foveal.data.augment import to_floats
from foveal.data.pictures import UnreadableImageError, load_square
from foveal.draw.attention import draw_attention, record_attention
from foveal.layers.weights import device_of
from foveal.recipes.assets import read_asset
from foveal.recipes.beside import (
    OTHER_WEIGHTS,
    Exported,
    differ,
    difference_in_words,
    open_beside,
)
from foveal.recipes.images.kind import probabilities
from foveal.recipes.kind import Run, require_task
from foveal.recipes.runs import open_model, open_run
from foveal.training.progress import showing


@dataclass(frozen=True)
class PredictedBeside:
    """What an exported program says about a picture.

    Attributes:
        shares: class -> probability.
        difference, largest: the largest difference of its logits from the model's, and the
            largest logit.
        same_weights: whether it was exported from these very weights.
    """

    shares: dict[str, float]
    difference: float
    largest: float
    same_weights: bool

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)

    def __str__(self) -> str:
        line = difference_in_words(self.difference, self.largest)
        return line if self.same_weights else f"{line}\n{OTHER_WEIGHTS}"


@dataclass(frozen=True)
class Prediction:
    """What a model says about a picture.

    Attributes:
        path: of the picture.
        ranking: (class, probability), the likeliest first; empty if it could not be read.
        problem: why not.
        exported: what a program says about it that was exported from the model; None without one.
    """

    path: str
    ranking: list[tuple[str, float]]
    problem: str = ""
    exported: PredictedBeside | None = None

    def _repr_html_(self) -> str:
        """What a notebook shows: the classes with their shares, those of a program beside them."""
        rows = [(name, html.Share(share)) for name, share in self.ranking]
        if self.exported is None:
            return html.table(rows, title=self.path, note=self.problem)
        shares = self.exported.shares
        beside = [(*row, html.Share(shares[row[0]])) for row in rows]
        head = ("", "model", "exported")
        return html.table(beside, title=self.path, head=head, note=str(self.exported))


def predict(
    run: Run | Path | str,
    paths: Sequence[str | Path],
    top: int = 5,
    device: str = "auto",
    program: str | Path | None = None,
) -> list[Prediction]:
    """The likeliest classes of picture files; unreadable ones are reported, not raised.

    Args:
        program: a file of `foveal export`, to be asked too.
    """
    run = open_run(run)
    require_task(run.config, "images", "predict")
    model, _ = open_model(run, device)
    classes, data = read_asset("classes", run.folder), run.config.data
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top=}.")
    beside = None if program is None else open_beside(program, model)
    found = []
    with showing("reading"):
        for path in paths:
            try:
                pixels = torch.from_numpy(load_square(path, data.size)).permute(2, 0, 1)[None]
            except UnreadableImageError as error:
                found.append(Prediction(str(path), [], str(error)))
                continue
            best = probabilities(model, pixels, data.views)[0].topk(min(top, len(classes)))
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            ranking = [(classes[i], share) for i, share in pairs]
            told = None if beside is None else _asked(model, *beside, pixels, data.views, classes)
            found.append(Prediction(str(path), ranking, exported=told))
    return found


@torch.no_grad()
def _asked(
    model: nn.Module,
    exported: Exported,
    same_weights: bool,
    pixels: Tensor,
    views: int,
    classes: Sequence[str],
) -> PredictedBeside:
    """What a program says of a picture, pixels (1, 3, height, width) as bytes."""
    shares = probabilities(exported, pixels, views)[0].tolist()
    images = to_floats(pixels)
    logits = model(images.to(device_of(model))).cpu()
    named = dict(zip(classes, shares, strict=True))
    return PredictedBeside(named, *differ(exported(images), logits), same_weights)


def draw_run_attention(
    run: Run | Path | str,
    image: str,
    at: Sequence[tuple[int, int]],
    output: Path,
    device: str = "auto",
) -> list[Path]:
    """Pictures of where pixels of an image look, one for each pixel.

    Args:
        at: (row, column) of pixels; none for the middle.
        output: path of the first; further ones have a number before the suffix.
    """
    run = open_run(run)
    require_task(run.config, "images", "draw attention")
    model, _ = open_model(run, device)
    size = run.config.data.size
    pixels = load_square(image, size)
    chosen = list(at) or [(size // 2, size // 2)]
    inputs = to_floats(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    layers = record_attention(model, inputs.to(next(model.parameters()).device), chosen)
    paths = []
    for number, place in enumerate(chosen):
        path = output if number == 0 else output.with_stem(f"{output.stem}-{number + 1}")
        paths.append(draw_attention(pixels, layers, number, place, path))
    return paths
