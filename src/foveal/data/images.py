"""Pictures with classes to train and to score on: from folders, archives, `datasets`, emoji."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from foveal.data import augment
from foveal.data.stream import Draw


@dataclass(frozen=True, kw_only=True)
class ImageDataConfig:
    """Which pictures, how large, and how they are varied in training.

    Attributes:
        path: "emoji" for the embedded pictures; a folder of class folders, with or without
            folders train, valid and test above them; a .npz archive; or "hf:NAME" for the Hugging
            Face `datasets` package ("hf:imagefolder:FOLDER" reads a local one, "hf-stream:NAME"
            without downloading all of it).
        valid: other such data of the same classes to score on while training.
        size: pictures are scaled and cropped to size x size pixels.
        held_out: share of the pictures kept for scoring where the data have no split.
        max_images: use only so many training pictures; 0 means all.
        crop: shift by up to so many pixels.
        least_area: cut a random window of at least this share and scale it up; 1 means never.
        flip: mirror half of the pictures left to right.
        rand_augment: strength of random changes of colour and shape; 0 means none.
        erasing: share of the pictures that lose a random rectangle.
        mixup, cutmix: parameter alpha of each; 0 means never. With both, batches take turns.
        label_smoothing: share of the target that is spread over all classes.
        balance: pictures of a class are shown (largest class / class) ** balance times as often: 0
            shows all pictures alike, 1 all classes.
        views: what the model says of a picture is averaged over so many views of it: 1; 2 with its
            mirror image; 10 with both shifted by a pixel to each side.
    """

    path: str = "emoji"
    valid: str = ""
    size: int = 32
    held_out: float = 0.1
    max_images: int = 0
    crop: int = 4
    least_area: float = 1.0
    flip: bool = True
    rand_augment: float = 0.0
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    label_smoothing: float = 0.1
    balance: float = 0.0
    views: int = 1


class ImageSet:
    """Labelled pictures of one size.

    Args:
        name: what to call them in reports.
        labels: int64 (n,).
        classes: the name of each label.
        read: indices (any number) -> uint8 (number, 3, size, size).
        skipped: what was wrong with files that were left out.
    """

    def __init__(
        self,
        name: str,
        labels: Tensor,
        classes: Sequence[str],
        read: Callable[[Tensor], Tensor],
        skipped: Sequence[str] = (),
    ) -> None:
        self.name, self.labels, self.classes = name, labels, list(classes)
        self.read, self.skipped = read, list(skipped)

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def from_pixels(
        cls, name: str, pixels: np.ndarray, labels: Any, classes: Sequence[str], skipped: Any = ()
    ) -> ImageSet:
        """A set held in memory; pixels uint8 (n, size, size, 3)."""
        images = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2)
        return cls(
            name, torch.as_tensor(labels).long(), classes, lambda index: images[index], skipped
        )

    def subset(self, index: Tensor, name: str) -> ImageSet:
        """Some of the pictures, in the order of `index` (count)."""
        return ImageSet(
            name, self.labels[index], self.classes, lambda i: self.read(index[i]), self.skipped
        )

    def checksum(self) -> str:
        """Eight hexadecimal digits that other pictures or labels would change."""
        digest = hashlib.sha256(self.labels.numpy().tobytes())
        chosen = torch.linspace(0, len(self) - 1, min(64, len(self))).long()
        digest.update(self.read(chosen).contiguous().numpy().tobytes())
        return digest.hexdigest()[:8]


class AugmentedImages:
    """Pictures to train on, varied anew in every pass, rare classes more often.

    Args:
        images: where they come from.
        config: how they are varied.
    """

    def __init__(self, images: ImageSet, config: ImageDataConfig) -> None:
        self.images, self.config = images, config
        self.shown = shown_in_a_pass(images.labels, config.balance)

    def __len__(self) -> int:
        return len(self.shown)

    def draw(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """Images (batch, 3, size, size) float, and targets (batch, classes) that sum to 1."""
        index = self.shown[draw.indices]
        images = augment.to_floats(self.images.read(index))
        targets = torch.nn.functional.one_hot(
            self.images.labels[index], len(self.images.classes)
        ).float()
        return vary(images, targets, self.config, draw.generator)


def shown_in_a_pass(labels: Tensor, balance: float) -> Tensor:
    """Places of the pictures of one pass, rare ones several times: int64 (at least n,)."""
    counts = labels.bincount()
    often = (counts.max() / counts.clamp(min=1)) ** balance
    return torch.arange(len(labels)).repeat_interleave(often.round().long()[labels])


def vary(
    images: Tensor, targets: Tensor, config: ImageDataConfig, generator: Generator
) -> tuple[Tensor, Tensor]:
    """All augmentations of a configuration, in their usual order.

    images: (batch, channels, height, width); targets: (batch, classes).
    """
    if config.flip:
        images = augment.flip(images, generator)
    images = augment.random_resized_crop(images, config.least_area, generator)
    images = augment.random_crop(images, config.crop, generator)
    images = augment.rand_augment(images, config.rand_augment, generator)
    images = augment.random_erasing(images, config.erasing, generator)
    use_cutmix = config.cutmix > 0
    if config.cutmix > 0 and config.mixup > 0:
        use_cutmix = bool(torch.rand((), generator=generator) < 0.5)
    if use_cutmix:
        return augment.cutmix(images, targets, config.cutmix, generator)
    return augment.mixup(images, targets, config.mixup, generator)
