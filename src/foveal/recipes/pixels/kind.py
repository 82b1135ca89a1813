"""The task of pixel language models: bits per dimension, drawing pictures and completing them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveal.data.image_sources import PICTURES
from foveal.data.images import ImageSet
from foveal.data.pictures import load_square
from foveal.data.pixels import (
    CHANNELS,
    START,
    PixelDataConfig,
    PixelValues,
    to_inputs,
    to_pictures,
    to_values,
)
from foveal.data.sampling import sample, spread
from foveal.draw.grid import draw_grid
from foveal.recipes.kind import KindTask, Run
from foveal.recipes.language import NextToken, losses_of, sum_of_bits
from foveal.recipes.runs import open_model
from foveal.recipes.sharing import Parts
from foveal.training.dealing import totals_in_shares
from foveal.training.progress import tracked
from foveal.training.task import Totals

_QUICK_IMAGES = 32
_SCORING_BATCH = 8
_SHOWN, _COLUMNS, _MOST_DRAWN = 8, 4, 256
SAMPLES, COMPLETIONS = "samples.png", "completions.png"
"""Names of the pictures that a model draws, in the run's folder of pictures."""


@dataclass(frozen=True)
class Drawing:
    """Where a model has drawn."""

    path: Path

    def to_dict(self) -> dict[str, str]:
        return {"picture": str(self.path)}

    def __str__(self) -> str:
        return str(self.path)

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows: the picture, while its file is there."""
        return self.path.read_bytes() if self.path.is_file() else None


class Pixels(NextToken):
    """Language models of pictures, value by value."""

    reader = PICTURES
    data = PixelDataConfig
    score = "bits_per_dim"
    things, trained = "pictures", "pixels"
    must, seen = "a model of pixels", "what it predicts"
    forms: ClassVar = {"bits_per_dim": ("bits per dimension, held out", "{:.3f}")}
    labels: ClassVar = {"bits_per_dim": ("bits per dimension", "{:.3f}")}
    counted = "images"
    sheets: ClassVar = {
        SAMPLES: "Drawn value by value",
        COMPLETIONS: "Pictures, and their lower halves drawn by the model",
    }
    length, temperature, continues_text = _SHOWN, 1.0, False

    def source(self, task: KindTask) -> PixelValues:
        return PixelValues(task.train, task.config.data.flip, task.config.data.transform)

    def units(self, task: KindTask) -> int:
        return int(task.config.data.length)

    def max_seq_len(self, data: PixelDataConfig) -> int:
        """START, and every value while drawing."""
        return data.length + 1

    def most(self, data: PixelDataConfig) -> int:
        return data.scored_images

    def evaluate(self, task: KindTask, *, quick: bool, rank: int, world_size: int) -> Totals:
        """Bits per dimension over held-out pictures; quick: over 32 of them."""
        limit = _QUICK_IMAGES if quick else self.most(task.config.data)
        index = spread(len(task.held_out), limit)[rank::world_size]
        return score_pixels(task.model, task.held_out, index, task.parts)

    def facts(self, task: KindTask) -> dict[str, str]:
        data = task.config.data
        size = f"{data.size} x {data.size} pixels, {data.length:,} values each"
        return {"pictures": size}

    def finish(self, task: KindTask, folder: Path) -> None:
        model, size = task.model.eval(), task.config.data.size
        _draw_grid(draw_pictures(model, _SHOWN, size, seed=0), folder, SAMPLES)
        originals = task.held_out.read(spread(len(task.held_out), _COLUMNS))
        completed = complete_pictures(model, originals, size // 2, seed=0)
        _draw_grid(torch.cat((originals, completed)), folder, COMPLETIONS)

    def to_score(self, run: Run, data: str | None, full: bool, **options: Any) -> ImageSet:
        """A sample has the checksum of all that it was taken from."""
        whole = self.open_to_score(run, data)
        part: ImageSet = sample(whole, 0 if full else self.most(run.config.data), self.things)
        part.checksum = whole.checksum  # type: ignore[method-assign]
        return part

    def measure(self, run: Run, model: Any, found: ImageSet, **options: Any) -> dict[str, Any]:
        """Bits for each channel value."""
        whole = torch.arange(len(found))
        bits, count = totals_in_shares(
            lambda rank, size: score_pixels(model, found, whole[rank::size])["bits_per_dim"]
        )
        return {"bits_per_dim": bits / count, "images": len(found)}

    def table(self, score: Mapping[str, Any], folder: Path) -> list[str]:
        return [
            f"{score['data']} (checksum {score['checksum']}), {score['images']:,} pictures",
            f"bits per dimension  {score['bits_per_dim']:.3f}  ({score['checkpoint']})",
        ]

    def generate(
        self, run: Run, prompt: str, length: int, *, device: str, **sampling: Any
    ) -> Drawing:
        """Draw `length` pictures, or complete the lower half of the picture file `prompt`."""
        if not 1 <= length <= _MOST_DRAWN:
            raise ValueError(f"length must be from 1 to {_MOST_DRAWN} pictures, got {length}.")
        (model, _), size = open_model(run, device), run.config.data.size
        if not prompt:
            drawn = draw_pictures(model, length, size, **sampling)
            return Drawing(_draw_grid(drawn, run.folder, SAMPLES))
        given = torch.from_numpy(load_square(prompt, size)).permute(2, 0, 1)
        images = given.expand(length, -1, -1, -1)
        drawn = complete_pictures(model, images, size // 2, **sampling)
        return Drawing(_draw_grid(drawn, run.folder, COMPLETIONS))

    def start(self, run: Run, prompt: str) -> Tensor:
        """START, and the values of the upper half of a picture file if there is a prompt."""
        size = run.config.data.size
        values = torch.empty(1, 0, dtype=torch.long)
        if prompt:
            given = torch.from_numpy(load_square(prompt, size)).permute(2, 0, 1)[None]
            values = to_values(given)[:, : size // 2 * size * CHANNELS]
        return F.pad(values, (1, 0), value=START)

    def told(self, tokens: Tensor) -> str:
        return " ".join(map(str, tokens.tolist()))


KIND = Pixels()


@torch.no_grad()
def score_pixels(
    model: nn.Module, images: ImageSet, index: Tensor, parts: Parts | None = None
) -> Totals:
    """Sum of bits and number of values of the pictures at `index`, or of this process's part."""
    device, bits, count = next(model.parameters()).device, 0.0, 0
    for part in tracked(index.split(_SCORING_BATCH)) if len(index) else ():
        values = to_values(images.read(part)).to(device)
        inputs = to_inputs(values)
        if parts is not None:
            inputs, values = parts.take(inputs), parts.take(values)
        bits += sum_of_bits(losses_of(model, inputs, values))
        count += values.numel()
    return {"bits_per_dim": (bits, count)}


def draw_pictures(model: Any, count: int, size: int, **sampling: Any) -> Tensor:
    """Pictures out of nothing: uint8 (count, 3, size, size).

    Args:
        sampling: temperature, top_k, top_p, min_p, seed.
    """
    return _continue(model, torch.empty(count, 0, dtype=torch.long), size, **sampling)


def complete_pictures(model: Any, images: Tensor, rows: int, **sampling: Any) -> Tensor:
    """Keep the first rows of pictures uint8 (n, 3, size, size) and draw the others.

    Raises:
        ValueError: rows outside of the picture.
    """
    size = images.shape[-1]
    if not 0 <= rows <= size:
        raise ValueError(f"rows must be from 0 to {size}, got {rows=}.")
    return _continue(model, to_values(images)[:, : rows * size * CHANNELS], size, **sampling)


def _continue(model: Any, values: Tensor, size: int, **sampling: Any) -> Tensor:
    device = next(model.parameters()).device
    prompt = F.pad(values, (1, 0), value=START).to(device)
    written = model.generate(prompt, size * size * CHANNELS - values.shape[1], **sampling)
    return to_pictures(written[:, 1:].cpu(), size)


def _draw_grid(images: Tensor, folder: Path, name: str) -> Path:
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    return draw_grid(images.permute(0, 2, 3, 1).numpy(), pictures / name, columns=_COLUMNS)
