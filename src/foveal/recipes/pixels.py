"""The task of pixel language models: bits per dimension, drawing pictures and completing them."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveal.data.images import ImageSet
from foveal.data.pixels import (
    CHANNELS,
    START,
    PixelValues,
    open_pixels,
    to_inputs,
    to_pictures,
    to_values,
)
from foveal.data.sampling import sample_name, sampled, spread
from foveal.data.stream import Stream
from foveal.recipes.build import build_model
from foveal.recipes.config import RunConfig
from foveal.training.progress import tracked
from foveal.training.task import Totals

NUM_TOKENS = 256
_QUICK_IMAGES = 32
_SCORING_BATCH = 8


def build_pixel_model(config: RunConfig) -> nn.Module:
    """The model of a configuration, its weights drawn from the run's seed.

    Raises:
        ValueError: the model is not causal.
    """
    torch.manual_seed(config.training.seed)
    model = build_model(
        config.model,
        f"recipe {config.recipe}",
        num_tokens=NUM_TOKENS,
        max_seq_len=config.data.length + 1,  # START, and every value while drawing
    )
    if not getattr(model, "is_causal", True):
        raise ValueError(
            "a model of pixels must be causal, or it would see what it predicts; use causal "
            f"patterns, got {config.model.get('pattern')!r}."
        )
    return model


def rebuild(config: RunConfig, folder: Path) -> nn.Module:
    """The model of a run, with fresh weights."""
    return build_pixel_model(config)


class PixelTask:
    """Trains a language model on pictures, value by value. See `foveal.training.task.Task`."""

    unit = "tokens"
    score = "bits_per_dim"

    def __init__(self, config: RunConfig, rank: int = 0, world_size: int = 1) -> None:
        data, training = config.data, config.training
        self.config = data
        self.train_images, self.valid_images = open_pixels(data)
        source = PixelValues(self.train_images, data.flip)
        self.stream = Stream(source, training.batch_size, training.seed, rank, world_size)
        self.units_per_batch = training.batch_size * data.length
        self.model = build_pixel_model(config)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean cross-entropy in nats of the next value; inputs and targets (batch, length)."""
        inputs, targets = batch
        return F.cross_entropy(model(inputs).float().flatten(0, 1), targets.flatten())

    def evaluate(self, *, quick: bool, rank: int = 0, world_size: int = 1) -> Totals:
        """Bits per dimension over held-out pictures; quick: over 32 of them."""
        chosen = scored(self.valid_images, _QUICK_IMAGES if quick else self.config.scored_images)
        return score_pixels(self.model, self.valid_images, chosen[rank::world_size])

    def facts(self) -> dict[str, str]:
        """What a report should say about the data and the model."""
        parameters = sum(p.numel() for p in self.model.parameters())
        return {
            "parameters": f"{parameters:,}",
            "training data": _describe(self.train_images),
            "held-out data": _describe(self.valid_images),
            "pictures": f"{self.config.size} x {self.config.size} pixels, {self.config.length:,} "
            "values each",
            **sampled(len(self.valid_images), self.config.scored_images, "pictures"),
        }


def _describe(images: ImageSet) -> str:
    return f"{images.name}: {len(images):,} pictures, checksum {images.checksum()}"


def scored(images: ImageSet, limit: int) -> Tensor:
    """Indices of pictures spread evenly over a set; all of them where the limit is 0."""
    return spread(len(images), limit)


@torch.no_grad()
def score_pixels(model: nn.Module, images: ImageSet, index: Tensor) -> Totals:
    """Sum of bits and number of values of the pictures at `index`."""
    device, bits, count = next(model.parameters()).device, 0.0, 0
    for part in tracked(index.split(_SCORING_BATCH)) if len(index) else ():
        values = to_values(images.read(part)).to(device)
        logits = model(to_inputs(values)).float().flatten(0, 1)
        losses = F.cross_entropy(logits, values.flatten(), reduction="none")
        bits += float(losses.double().sum()) / math.log(2)
        count += values.numel()
    return {"bits_per_dim": (bits, count)}


# -- drawing --------------------------------------------------------------------------------------


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


# -- a score --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PixelEvaluation:
    """A score on held-out pictures.

    Attributes:
        bits_per_dim: bits for each channel value.
        images: number of pictures scored.
        data, checksum: what was scored.
        seconds: time that the scoring took.
        checkpoint: the weights that were scored.
    """

    bits_per_dim: float
    images: int
    data: str
    checksum: str
    seconds: float
    checkpoint: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)


def evaluate_model(
    model: nn.Module, images: ImageSet, limit: int, checkpoint: str
) -> PixelEvaluation:
    """Score pictures of a set, at most `limit`; 0 means all."""
    started, chosen = time.perf_counter(), scored(images, limit)
    bits, count = score_pixels(model, images, chosen)["bits_per_dim"]
    name = images.name
    if len(chosen) < len(images):
        name = sample_name(name, len(chosen), len(images), "pictures")
    return PixelEvaluation(
        bits / count,
        len(chosen),
        name,
        images.checksum(),
        time.perf_counter() - started,
        checkpoint,
    )
