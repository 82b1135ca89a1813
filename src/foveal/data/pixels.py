"""Pictures as sequences of channel values, which a language model reads and writes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveal.data import augment
from foveal.data.images import ImageSet
from foveal.data.stream import Draw
from foveal.data.transform import Transform

CHANNELS = 3
START = 0
"""The token before the first value, as the authors of Hourglass shift their inputs."""


@dataclass(frozen=True, kw_only=True)
class PixelDataConfig:
    """Which pictures, and how large.

    Attributes:
        path, valid, size, held_out, max_images: as in ImageDataConfig; a picture of size x size
            pixels is a sequence of size * size * 3 values.
        flip: mirror half of the training pictures left to right.
        transform: as in ImageDataConfig; its floats are rounded to whole values.
        scored_images: held-out pictures that are scored, spread over all of them; 0 means all.
    """

    path: str = "emoji"
    valid: str = ""
    size: int = 32
    held_out: float = 0.1
    max_images: int = 0
    flip: bool = False
    transform: str = ""
    scored_images: int = 256

    @property
    def length(self) -> int:
        """Values of a picture."""
        return self.size * self.size * CHANNELS


def to_values(images: Tensor) -> Tensor:
    """Pictures uint8 (n, 3, h, w) -> int64 (n, h * w * 3): rows, pixels, then red, green, blue."""
    return images.permute(0, 2, 3, 1).flatten(1).long()


def to_pictures(values: Tensor, size: int) -> Tensor:
    """The way back: (n, size * size * 3) -> uint8 (n, 3, size, size)."""
    return values.reshape(-1, size, size, CHANNELS).permute(0, 3, 1, 2).to(torch.uint8)


def to_inputs(values: Tensor) -> Tensor:
    """What the model sees when it predicts values (batch, length): those before, after START."""
    return torch.nn.functional.pad(values[:, :-1], (1, 0), value=START)


class PixelValues:
    """Pictures to train on as values, half of them mirrored where that is wished.

    Args:
        images: where they come from.
        flip: mirror half of them left to right.
        transform: as in `PixelDataConfig`.
    """

    def __init__(self, images: ImageSet, flip: bool, transform: str = "") -> None:
        self.images, self.flip = images, flip
        self._transform = Transform(transform) if transform else None
        # their seeds once depended on the number of processes
        self.refuses_old_draws = flip

    def __len__(self) -> int:
        return len(self.images)

    def draw(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """(inputs, targets), each int64 of shape (batch, length)."""
        images = self.images.read(draw.indices)
        if self._transform is not None:
            images = (self._transform(images, draw) * 255).round().to(torch.uint8)
        if self.flip:
            images = augment.flip(images, draw.chance)
        values = to_values(images)
        return to_inputs(values), values
