"""The task of models that turn pictures into tokens: how well the pictures come back."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foveal.data.caption_sources import open_captions
from foveal.data.captions import CaptionedSet, Pictures
from foveal.data.sampling import sampled, spread
from foveal.data.stream import Stream
from foveal.models.vae import ImageTokenizer, codebook_use
from foveal.recipes.build import build_model
from foveal.recipes.config import RunConfig
from foveal.training.progress import tracked
from foveal.training.task import Totals

_QUICK_PICTURES = 128
MOST_PICTURES = 2000
"""Captioned pictures that are scored at most, unless all are asked for."""
_BATCH = 100
_LEAST_ERROR = 1e-10  # of a perfect picture, so that its PSNR is a number


def build_vae(config: RunConfig) -> ImageTokenizer:
    """The model of a configuration, its weights drawn from the run's seed.

    Raises:
        ValueError: a model that makes no tokens of pictures.
    """
    importlib.import_module("foveal.models")
    torch.manual_seed(config.training.seed)
    model = build_model(config.model, f"recipe {config.recipe}", image_size=config.data.size)
    if not isinstance(model, ImageTokenizer):
        raise ValueError(
            f"the task 'vae' needs a DiscreteVAE or a VQVAE, got {config.model['name']!r}."
        )
    check_size(model, config.data.size)
    return model


def check_size(vae: ImageTokenizer, size: int) -> None:
    """Raise ValueError, naming both, unless a model takes pictures of size x size pixels."""
    height, width = vae.settings.pixels
    if (height, width) != (size, size):
        raise ValueError(
            f"the VAE takes pictures of {height} x {width} pixels, but data.size={size} makes "
            f"them {size} x {size}; set data.size={height}, or train a VAE for {size}."
        )


def rebuild(config: RunConfig, folder: Path) -> nn.Module:
    """The model of a run, with fresh weights."""
    return build_vae(config)


class VAETask:
    """Trains a DiscreteVAE or a VQVAE. See `foveal.training.task.Task`."""

    unit = "images"
    score = "psnr"

    def __init__(self, config: RunConfig, rank: int = 0, world_size: int = 1) -> None:
        data, training = config.data, config.training
        self.train_set, self.valid_set = open_captions(data)
        source = Pictures(self.train_set, data.flip)
        self.stream = Stream(source, training.batch_size, training.seed, rank, world_size)
        self.units_per_batch = training.batch_size
        self.model = build_vae(config)

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        """The model's own loss of pictures (batch, 3, size, size)."""
        loss: Tensor = model(batch, return_loss=True)
        return loss

    def evaluate(self, *, quick: bool, rank: int = 0, world_size: int = 1) -> Totals:
        """PSNR in dB over 2,000 held-out pictures, or 128; share of the codebook used."""
        index = spread(len(self.valid_set), _QUICK_PICTURES if quick else MOST_PICTURES)
        images = self.valid_set.images(index[rank::world_size])
        tokens, psnr = reconstruct(self.model, images)
        used = codebook_use(tokens, self.model.num_tokens).used
        return {
            "psnr": (float(psnr.sum()), float(len(psnr))),
            "codebook_used": (used, 1.0),
        }

    def facts(self) -> dict[str, str]:
        """What a report should say about the data and the model."""
        rows, columns = self.model.grid
        return {
            "parameters": f"{self.model.num_parameters:,}",
            **describe_sets(self.train_set, self.valid_set),
            "tokens of a picture": f"{rows} x {columns}, of {self.model.num_tokens:,} kinds",
        }


def describe_sets(train: CaptionedSet, valid: CaptionedSet) -> dict[str, str]:
    """Rows of a report about the data."""
    rows = {
        name: f"{part.name}: {len(part):,} pictures, checksum {part.checksum()}"
        for name, part in (("training data", train), ("held-out data", valid))
    }
    rows |= sampled(len(valid), MOST_PICTURES, "pictures")
    skipped = len(set(train.skipped + valid.skipped))
    return rows | ({"skipped files": f"{skipped:,}"} if skipped else {})


@torch.no_grad()
def encode_all(vae: ImageTokenizer, images: Tensor) -> Tensor:
    """Tokens (n, grid tokens) of pictures (n, channels, height, width), on the CPU."""
    device = next(vae.parameters()).device
    parts = [
        vae.get_codebook_indices(part.to(device)).cpu() for part in tracked(images.split(_BATCH))
    ]
    return torch.cat(parts) if parts else torch.zeros(0, vae.grid[0] * vae.grid[1]).long()


@torch.no_grad()
def decode_all(vae: ImageTokenizer, tokens: Tensor) -> Tensor:
    """Pictures (n, channels, height, width) in [0, 1] of tokens (n, grid tokens), on the CPU."""
    device = next(vae.parameters()).device
    return torch.cat([vae.decode(part.to(device)).float().cpu() for part in tokens.split(_BATCH)])


def reconstruct(vae: ImageTokenizer, images: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens of pictures, and the PSNR in dB of what comes back (n,)."""
    tokens = encode_all(vae, images)
    error = (decode_all(vae, tokens) - images).square().flatten(1).mean(1)
    psnr: Any = -10 * error.clamp(min=_LEAST_ERROR).log10()
    return tokens, psnr
