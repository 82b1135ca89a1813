"""The task of models that turn pictures into tokens: how well the pictures come back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foveal.data.captions import CaptionedSet, PictureDataConfig, Pictures
from foveal.data.sampling import spread
from foveal.draw.sheet import draw_sheet
from foveal.models.vae import ImageTokenizer, codebook_use
from foveal.recipes.captioned import Captioned
from foveal.recipes.kind import KindTask, Run, seeded_model
from foveal.recipes.settings import RunConfig
from foveal.training.dealing import dealt
from foveal.training.task import Totals

_QUICK_PICTURES = 128
_SHOWN = 16
_BATCH = 100
_LEAST_ERROR = 1e-10  # of a perfect picture, so that its PSNR is a number


class VAE(Captioned):
    """DiscreteVAE and VQVAE."""

    data = PictureDataConfig
    score = "psnr"

    def build(self, config: RunConfig, **assets: Any) -> ImageTokenizer:
        """The model of a configuration; ValueError for one that makes no tokens of pictures."""
        model = seeded_model(config, image_size=config.data.size)
        if not isinstance(model, ImageTokenizer):
            raise ValueError(
                f"the task 'vae' needs a DiscreteVAE or a VQVAE, got {config.model['name']!r}."
            )
        check_size(model, config.data.size)
        return model

    def source(self, task: KindTask) -> Pictures:
        data = task.config.data
        return Pictures(task.train, data.flip, data.transform)

    def loss(self, task: KindTask, model: nn.Module, batch: Tensor) -> Tensor:
        """The model's own loss of pictures (batch, 3, size, size)."""
        loss: Tensor = model(batch, return_loss=True)
        return loss

    def evaluate(self, task: KindTask, *, quick: bool, rank: int, world_size: int) -> Totals:
        """PSNR in dB over 2,000 held-out pictures, or 128; share of the codebook used."""
        limit = _QUICK_PICTURES if quick else self.most(task.config.data)
        index = spread(len(task.held_out), limit)
        model: Any = task.model
        tokens, psnr = reconstruct(model, task.held_out.images(index[rank::world_size]))
        used = codebook_use(tokens, model.num_tokens).used
        return {
            "psnr": (float(psnr.sum()), float(len(psnr))),
            "codebook_used": (used, 1.0),
        }

    def facts(self, task: KindTask) -> dict[str, str]:
        model: Any = task.model
        rows, columns = model.grid
        tokens = f"{rows} x {columns}, of {model.num_tokens:,} kinds"
        return super().facts(task) | {"tokens of a picture": tokens}

    def finish(self, task: KindTask, folder: Path) -> None:
        """Draw rows of held-out pictures, each above a row of what comes back."""
        model: Any = task.model.eval()
        images = task.held_out.images(spread(len(task.held_out), _SHOWN))
        decoded = decode_all(model, encode_all(model, images))
        half = max(1, len(images) // 2)
        rows = torch.cat([images[:half], decoded[:half], images[half:], decoded[half:]])
        draw_sheet(rows, folder / "pictures" / "reconstructions.png", columns=half)

    def scores(self, run: Run, model: Any, found: CaptionedSet) -> dict[str, float]:
        return score_vae(model, found)


KIND = VAE()


def check_size(vae: ImageTokenizer, size: int) -> None:
    """Raise ValueError, naming both, unless a model takes pictures of size x size pixels."""
    height, width = vae.settings.pixels
    if (height, width) != (size, size):
        raise ValueError(
            f"the VAE takes pictures of {height} x {width} pixels, but data.size={size} makes "
            f"them {size} x {size}; set data.size={height}, or train a VAE for {size}."
        )


def score_vae(vae: ImageTokenizer, held_out: CaptionedSet) -> dict[str, float]:
    """The scores of a VAE on pictures."""
    tokens, psnr = reconstruct(vae, held_out.images())
    use = codebook_use(tokens, vae.num_tokens)
    return {
        "psnr": float(psnr.mean()),
        "codebook_used": use.used,
        "codebook_perplexity": use.perplexity,
    }


def encode_all(vae: ImageTokenizer, images: Tensor) -> Tensor:
    """Tokens (n, grid tokens) of pictures (n, channels, height, width), on the CPU."""
    return encode_each(vae, len(images), images.__getitem__)


@torch.no_grad()
def encode_each(vae: ImageTokenizer, count: int, read: Callable[[Tensor], Tensor]) -> Tensor:
    """Tokens (count, grid tokens) of pictures that are read by number, by whoever encodes them.

    Args:
        read: numbers (n,) -> pictures (n, channels, height, width).
    """
    device = next(vae.parameters()).device
    numbers = torch.arange(count).split(_BATCH) if count else ()
    parts = dealt(numbers, lambda part: vae.get_codebook_indices(read(part).to(device)).cpu())
    return torch.cat(parts) if parts else torch.zeros(0, vae.grid[0] * vae.grid[1]).long()


@torch.no_grad()
def decode_all(vae: ImageTokenizer, tokens: Tensor) -> Tensor:
    """Pictures (n, channels, height, width) in [0, 1] of tokens (n, grid tokens), on the CPU."""
    device = next(vae.parameters()).device
    decode = lambda part: vae.decode(part.to(device)).float().cpu()  # noqa: E731
    return torch.cat(dealt(tokens.split(_BATCH), decode))


def reconstruct(vae: ImageTokenizer, images: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens of pictures, and the PSNR in dB of what comes back (n,)."""
    tokens = encode_all(vae, images)
    error = (decode_all(vae, tokens) - images).square().flatten(1).mean(1)
    psnr: Any = -10 * error.clamp(min=_LEAST_ERROR).log10()
    return tokens, psnr
