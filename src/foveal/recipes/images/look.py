"""What image classifiers say of single pictures, and where they look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from foveal.common import html
from foveal.data.augment import to_floats
from foveal.data.pictures import UnreadableImageError, load_square
from foveal.draw.attention import draw_attention, record_attention
from foveal.recipes.assets import read_asset
from foveal.recipes.images.kind import probabilities
from foveal.recipes.kind import Run, require_task
from foveal.recipes.runs import open_model, open_run
from foveal.training.progress import showing


@dataclass(frozen=True)
class Prediction:
    """What a model says about a picture.

    Attributes:
        path: of the picture.
        ranking: (class, probability), the likeliest first; empty if it could not be read.
        problem: why not.
    """

    path: str
    ranking: list[tuple[str, float]]
    problem: str = ""

    def _repr_html_(self) -> str:
        """What a notebook shows: the classes with their shares."""
        rows = [(name, html.Share(share)) for name, share in self.ranking]
        return html.table(rows, title=self.path, note=self.problem)


def predict(
    run: Run | Path | str, paths: Sequence[str | Path], top: int = 5, device: str = "auto"
) -> list[Prediction]:
    """The likeliest classes of picture files; unreadable ones are reported, not raised."""
    run = open_run(run)
    require_task(run.config, "images", "predict")
    model, _ = open_model(run, device)
    classes, data = read_asset("classes", run.folder), run.config.data
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top=}.")
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
            found.append(Prediction(str(path), [(classes[i], share) for i, share in pairs]))
    return found


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
