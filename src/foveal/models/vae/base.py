"""What the models that turn pictures into tokens share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from foveal.common.checks import check_dense
from foveal.layers.weights import dtype_of
from foveal.models.base import Model
from foveal.models.pictures import as_pixels
from foveal.models.vae.config import ImageTokenizerConfig
from foveal.models.vae.networks import make_decoder
from foveal.models.vocabulary import embedded
from foveal.patterns.sizes import pair


@dataclass(frozen=True)
class CodebookUse:
    """How much of a codebook some tokens use.

    Attributes:
        used: share of the entries that occur.
        perplexity: entries that would carry as much if all were as likely (2 ** entropy in bits).
    """

    used: float
    perplexity: float


def codebook_use(tokens: Tensor, num_tokens: int) -> CodebookUse:
    """How much of a codebook of `num_tokens` entries `tokens` (int, any shape) use."""
    counts = torch.bincount(tokens.flatten(), minlength=num_tokens).double()
    shares = counts[counts > 0] / counts.sum()
    entropy = float(-(shares * shares.log()).sum())
    return CodebookUse(float((counts > 0).double().mean()), math.exp(entropy))


class ImageTokenizer(Model):
    """Base of DiscreteVAE and VQVAE: pictures to a grid of tokens, and back.

    Subclasses make `encoder`, `decoder` and say what the codebook is.

    Attributes:
        image_size, num_tokens, num_layers, channels: as given.
        grid: (height, width) of the tokens.
    """

    settings: ImageTokenizerConfig

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__()
        self.settings = config
        self.image_size, self.grid = config.image_size, config.grid
        self.num_tokens, self.num_layers = config.num_tokens, config.num_layers
        self.channels = config.channels
        self.decoder = make_decoder(config)

    # -- what a subclass defines ------------------------------------------------------------

    def _logits(self, normalized: Tensor) -> Tensor:
        """Padded pictures -> scores of the tokens (batch, num_tokens, grid height, grid width)."""
        raise NotImplementedError

    def _embed(self, tokens: Tensor) -> Tensor:
        """Tokens (any shape) -> entries of the codebook (same shape, codebook_dim)."""
        raise NotImplementedError

    # -- the public face --------------------------------------------------------------------

    @torch.no_grad()
    def get_codebook_indices(self, images: Tensor) -> Tensor:
        """The tokens of pictures, row by row.

        Args:
            images: (batch, channels, height, width), values from 0 to 1; or bytes.

        Returns:
            (batch, grid height * grid width) int64.

        Raises:
            ValueError: pictures of another size than image_size.
        """
        return self._logits(self._prepare(images)).argmax(1).flatten(1)

    def decode(self, img_seq: Tensor) -> Tensor:
        """Pictures (batch, channels, height, width) in [0, 1] of tokens (batch, grid tokens).

        Raises:
            ValueError: not as many tokens as the grid has.
        """
        return self._to_pixels(self._decode(img_seq)).clamp(0.0, 1.0)

    @torch.no_grad()
    def codebook_use(self, images: Tensor) -> CodebookUse:
        """How much of the codebook pictures use: images (batch, channels, height, width)."""
        return codebook_use(self.get_codebook_indices(images), self.num_tokens)

    def example_inputs(self, length: Any = None) -> tuple[Tensor, ...]:
        """A picture without values."""
        size = self.settings.pixels if length is None else pair(length, "length")
        return (torch.empty(1, self.channels, *size, dtype=dtype_of(self), device="meta"),)

    # -- shared steps -----------------------------------------------------------------------

    def _prepare(self, images: Tensor) -> Tensor:
        """Check, normalize, and pad to whole tokens."""
        expected = (self.channels, *self.settings.pixels)
        check_dense("images", images)
        if images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise ValueError(
                f"images must be (batch, channels, height, width) = (batch, "
                f"{', '.join(map(str, expected))}), got shape {tuple(images.shape)}; scale them "
                f"to image_size={self.image_size}, or make the model with theirs."
            )
        step = 2**self.num_layers
        (height, width), (rows, columns) = self.settings.pixels, self.grid
        padding = (0, columns * step - width, 0, rows * step - height)
        images = self._normalize(as_pixels("images", images, dtype_of(self.decoder)))
        return F.pad(images, padding, mode="replicate") if any(padding) else images

    def _normalize(self, images: Tensor) -> Tensor:
        if self.settings.normalization is None:
            return images
        means, deviations = self._statistics(images)
        return (images - means) / deviations

    def _to_pixels(self, normalized: Tensor) -> Tensor:
        if self.settings.normalization is None:
            return normalized
        means, deviations = self._statistics(normalized)
        return normalized * deviations + means

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        assert self.settings.normalization is not None
        means, deviations = (
            like.new_tensor(values[: self.channels])[:, None, None]
            for values in self.settings.normalization
        )
        return means, deviations

    def _decode(self, img_seq: Tensor) -> Tensor:
        """Tokens -> normalized pictures, without the padding."""
        rows, columns = self.grid
        check_dense("img_seq", img_seq)
        if img_seq.ndim != 2 or img_seq.shape[1] != rows * columns:
            raise ValueError(
                f"img_seq must be (batch, {rows * columns}) tokens for a grid of {rows} x "
                f"{columns}, got shape {tuple(img_seq.shape)}."
            )
        features = embedded(self._embed, img_seq, self.num_tokens, "img_seq")
        features = features.unflatten(1, self.grid).permute(0, 3, 1, 2)
        return self._crop(self.decoder(features))

    def _crop(self, images: Tensor) -> Tensor:
        height, width = self.settings.pixels
        return images[..., :height, :width]

    def _reconstruction_loss(self, normalized: Tensor, decoded: Tensor) -> Tensor:
        wanted = self._crop(normalized)
        if self.settings.smooth_l1_loss:
            return F.smooth_l1_loss(decoded, wanted)
        return F.mse_loss(decoded, wanted)

    def _result(
        self, loss: Tensor, decoded: Tensor, return_loss: bool, return_recons: bool
    ) -> Any:
        if not return_loss:
            return decoded
        return (loss, decoded) if return_recons else loss
