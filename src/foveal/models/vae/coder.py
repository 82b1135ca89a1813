"""Any object that encodes pictures as codes, as the VAE of a DALLE."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from foveal.layers.weights import device_of, dtype_of
from foveal.models.base import evaluating
from foveal.models.pictures import as_pixels
from foveal.models.vae.config import read_image_size
from foveal.patterns.sizes import pair


class PictureCoder(Protocol):
    """Pictures to a grid of whole numbers, and back."""

    def encode(self, pictures: Tensor) -> Tensor:
        """(batch, channels, height, width) -> int (batch, grid height, grid width)."""

    def decode(self, codes: Tensor) -> Tensor:
        """int (batch, grid height, grid width) -> (batch, channels, height, width)."""


class CoderVAE:
    """What DALLE asks of a VAE, on top of an object with `encode` and `decode`.

    The object stays what it is: it is neither trained nor moved nor saved with a DALLE. One that
    is read from a folder has no VAE, until `model.vae` is set to this again.

    Args:
        coder: see `PictureCoder`; an nn.Module is called in evaluation mode.
        image_size: pixels of the pictures, an int for a square or (height, width).
        num_tokens: codes are below it.
        channels: of the pictures.
        value_range: what the coder has for black and white; pictures here are from 0 to 1.

    Attributes:
        grid: (height, width) of the codes, found by encoding a black picture.

    Raises:
        ValueError: the object lacks a method, or does not give a grid of codes; or white is no
            more than black.
    """

    def __init__(
        self,
        coder: PictureCoder,
        image_size: int | tuple[int, int],
        num_tokens: int,
        *,
        channels: int = 3,
        value_range: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        for name in ("encode", "decode"):
            if not callable(getattr(coder, name, None)):
                raise ValueError(f"coder must have a method {name}, got {type(coder).__name__}.")
        self.coder, self.num_tokens, self.channels = coder, num_tokens, channels
        check_value_range(value_range)
        self.image_size, self.value_range = read_image_size(image_size), value_range
        self.pixels = pair(self.image_size, "image_size")
        self.num_layers = 0  # `grid` says more
        self.grid: tuple[int, ...] = (0, 0)
        codes = self._encode(torch.zeros(1, channels, *self.pixels))
        self.grid = tuple(codes.shape[1:])
        pictures = self._decode(codes)
        wanted = (1, channels, *self.pixels)
        if tuple(pictures.shape) != wanted:
            raise ValueError(
                f"coder must decode pictures of the shape {wanted}, got {tuple(pictures.shape)}."
            )

    @torch.no_grad()
    def get_codebook_indices(self, images: Tensor) -> Tensor:
        """Pictures (batch, channels, height, width) in [0, 1] -> codes (batch, grid tokens).

        Raises:
            ValueError: pictures of another size, or codes that are none.
        """
        check_pictures(images, self.channels, self.pixels)
        return self._encode(images).flatten(1)

    @torch.no_grad()
    def decode(self, img_seq: Tensor) -> Tensor:
        """Codes (batch, grid tokens) -> pictures (batch, channels, height, width) in [0, 1].

        Raises:
            ValueError: not as many codes as the grid has.
        """
        low, high = self.value_range
        pictures = self._decode(as_grid(img_seq, self.grid))
        return ((pictures.float() - low) / (high - low)).clamp(0.0, 1.0)

    def _encode(self, images: Tensor) -> Tensor:
        low, high = self.value_range
        scaled = as_pixels("images", images, torch.float32) * (high - low) + low
        with torch.no_grad(), evaluating(self.coder):
            codes = self.coder.encode(self._placed(scaled))
        self._check_codes(codes, len(images))
        return codes.long()

    def _decode(self, codes: Tensor) -> Tensor:
        with torch.no_grad(), evaluating(self.coder):
            return self.coder.decode(self._placed(codes.long()))

    def _placed(self, values: Tensor) -> Tensor:
        if not isinstance(self.coder, nn.Module):
            return values
        dtype = dtype_of(self.coder) if values.is_floating_point() else values.dtype
        return values.to(device_of(self.coder), dtype)

    def _check_codes(self, codes: Any, batch: int) -> None:
        known = self.grid if any(self.grid) else None
        if (
            not isinstance(codes, Tensor)
            or codes.ndim != 3
            or codes.is_floating_point()
            or len(codes) != batch
            or tuple(codes.shape[1:]) != (known or tuple(codes.shape[1:]))
        ):
            told = type(codes).__name__
            if isinstance(codes, Tensor):
                told = f"{codes.dtype} of shape {tuple(codes.shape)}"
            rows, columns = known or ("grid height", "grid width")
            raise ValueError(f"coder must encode as int ({batch}, {rows}, {columns}), got {told}.")
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.num_tokens:
            raise ValueError(
                f"coder must give codes from 0 to num_tokens - 1 = {self.num_tokens - 1}, got "
                f"{int(codes.min())} to {int(codes.max())}."
            )


def check_value_range(value_range: tuple[float, float]) -> None:
    """Raise ValueError unless white is more than black."""
    low, high = value_range
    if not low < high:
        raise ValueError(
            f"value_range must go up, got value_range={value_range}; (-1, 1) and (0, 1) are usual."
        )


def check_pictures(images: Tensor, channels: int, pixels: tuple[int, int]) -> None:
    """Raise ValueError unless pictures are (batch, channels, height, width) of these pixels."""
    expected = (channels, *pixels)
    if images.ndim != 4 or tuple(images.shape[1:]) != expected:
        raise ValueError(
            "images must be (batch, channels, height, width) = (batch, "
            f"{', '.join(map(str, expected))}), got shape {tuple(images.shape)}; scale them to "
            "image_size, or make the VAE with theirs."
        )


def as_grid(img_seq: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Tokens (batch, grid tokens) -> (batch, grid height, grid width); ValueError for others."""
    rows, columns = grid
    if img_seq.ndim != 2 or img_seq.shape[1] != rows * columns or img_seq.is_floating_point():
        raise ValueError(
            f"img_seq must be int (batch, {rows * columns}) for a grid of {rows} x {columns}, got "
            f"{img_seq.dtype} of shape {tuple(img_seq.shape)}."
        )
    return img_seq.long().unflatten(1, (rows, columns))
