"""Pictures with classes: settings, sets of them, decoding, and how they are varied in training."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveal.data import augment
from foveal.data.chance import Chance
from foveal.data.examples import Examples
from foveal.data.pictures import PictureSource, try_square
from foveal.data.stream import Draw
from foveal.data.transform import Transform
from foveal.data.walk import LeftOut, printable


@dataclass(frozen=True, kw_only=True)
class ImageDataConfig:
    """Which pictures, how large, and how they are varied in training.

    Attributes:
        path: "emoji" for the embedded pictures; a folder of class folders, with or without
            folders train, valid and test above them; a .npz archive; webdataset archives with a
            .cls beside each picture ("shard-{000..009}.tar", also "s3://..."); or "hf:NAME" for
            the Hugging Face `datasets` package ("hf:imagefolder:FOLDER" reads a local one,
            "hf-stream:NAME" without downloading all of it).
        valid: other such data of the same classes to score on while training.
        size: pictures are scaled and cropped to size x size pixels.
        held_out: share of the pictures kept for scoring where the data have no split.
        max_images: use only so many training pictures; 0 means all.
        transform: a function of one's own, "package.module:function", that gets each training
            picture before it is varied otherwise; see `foveal.data.transform.Transform`.
        crop: shift by up to so many pixels.
        least_area: cut a random window of at least this share and scale it up; 1 means never.
        flip: mirror half of the pictures left to right.
        rand_augment: strength of random changes of colour and shape; 0 means none.
        erasing: share of the pictures that lose a random rectangle.
        mixup, cutmix: parameter alpha of each; 0 means never. With both, pictures take turns.
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
    transform: str = ""
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
        self._transform = Transform(config.transform) if config.transform else None

    def __len__(self) -> int:
        return len(self.shown)

    def draw(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """Images (batch, 3, size, size) float, and targets (batch, classes) that sum to 1."""
        own = len(draw.indices)
        if self.config.mixup or self.config.cutmix:
            draw = draw.with_partners()
        index = self.shown[draw.indices]
        pictures = self.images.read(index)
        if self._transform is not None:
            pictures = self._transform(pictures, draw)
        images = augment.to_floats(pictures)
        targets = torch.nn.functional.one_hot(
            self.images.labels[index], len(self.images.classes)
        ).float()
        images, targets = vary(images, targets, self.config, draw.chance)
        return images[:own], targets[:own]


def shown_in_a_pass(labels: Tensor, balance: float) -> Tensor:
    """Places of the pictures of one pass, rare ones several times: int64 (at least n,)."""
    counts = labels.bincount()
    often = (counts.max() / counts.clamp(min=1)) ** balance
    return torch.arange(len(labels)).repeat_interleave(often.round().long()[labels])


def vary(
    images: Tensor, targets: Tensor, config: ImageDataConfig, chance: Chance
) -> tuple[Tensor, Tensor]:
    """All augmentations of a configuration, in their usual order.

    images: (batch, channels, height, width); targets: (batch, classes).
    """
    if config.flip:
        images = augment.flip(images, chance)
    images = augment.random_resized_crop(images, config.least_area, chance)
    images = augment.random_crop(images, config.crop, chance)
    images = augment.rand_augment(images, config.rand_augment, chance)
    images = augment.random_erasing(images, config.erasing, chance)
    if not (config.cutmix and config.mixup):
        images, targets = augment.cutmix(images, targets, config.cutmix, chance)
        return augment.mixup(images, targets, config.mixup, chance)
    pasted, one, other = chance.coin(), chance.apart(), chance.apart()
    if not pasted.any():
        return augment.mixup(images, targets, config.mixup, other)
    found = augment.cutmix(images, targets, config.cutmix, one)
    if pasted.all():
        return found
    blended = augment.mixup(images, targets, config.mixup, other)
    return (
        torch.where(pasted[:, None, None, None], found[0], blended[0]),
        torch.where(pasted[:, None], found[1], blended[1]),
    )


IN_MEMORY = 2 << 30  # bytes of pixels up to which a data set is decoded once

Job = tuple[PictureSource, int, str]
"""A picture (a path, bytes, or what gives them), the size to make it, what to call it."""

_GREY = 128

Decoded = tuple[np.ndarray, list[tuple[int, str]]]
"""Pixels uint8 (n, size, size, 3), and what was wrong with some, by place."""


def decode(examples: Examples, size: int, left: LeftOut, limit: int = 0) -> ImageSet:
    """Read pictures into memory, or where that is too small, when they are needed.

    Args:
        limit: choose so many at random, and decode no more than it takes to have them.
    """
    most = min(limit or len(examples), len(examples))
    if is_too_large(examples, most, size):
        chosen = examples.chosen(limit).subset(np.arange(most))
        lazy = lazily(chosen, size)
        return ImageSet(chosen.name, torch.from_numpy(chosen.labels), chosen.classes, lazy)
    good, pieces = examples.read(left, limit)
    pieces = pieces or [np.zeros((0, size, size, 3), np.uint8)]
    pixels = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    return ImageSet.from_pixels(good.name, pixels, good.labels, good.classes, left.problems)


def is_too_large(examples: Examples, count: int, size: int) -> bool:
    """Whether so many are better read when they are needed, and can be."""
    can = bool(examples.files) or examples.pictures is not None
    return can and count * size**2 * 3 > IN_MEMORY


def lazily(examples: Examples, size: int) -> LazyPictures:
    """What reads the pictures of examples when they are needed."""
    read = examples.pictures
    if read is None:
        return LazyFiles([examples.files[i] for i in examples.places], size)
    return LazyPictures(lambda numbers: read(examples.places[numbers]), size)


def collect(jobs: Iterable[Job], count: int, size: int) -> Decoded:
    """Decode into one array (count, size, size, 3); also what was wrong, by number."""
    pixels = np.zeros((count, size, size, 3), dtype=np.uint8)
    skipped = []
    # Pillow lets go of Python's lock while it decodes, so threads are enough
    with ThreadPoolExecutor(_num_workers()) as pool:
        for number, result in enumerate(pool.map(try_square, jobs)):
            if isinstance(result, str):
                skipped.append((number, result))
            else:
                pixels[number] = result
    return pixels, skipped


class LazyPictures:
    """Decodes the pictures of a batch when they are asked for.

    A damaged one comes out grey, with a warning that names it once.

    Args:
        load: numbers int64 (n,) -> pixels uint8 (n, size, size, 3), and what was wrong.
        size: of the result.
    """

    def __init__(self, load: Callable[[np.ndarray], Decoded], size: int) -> None:
        self.load, self.size = load, size
        self._damaged: set[int] = set()

    def __call__(self, index: Tensor) -> Tensor:
        numbers = index.reshape(-1).numpy()
        pixels, bad = self.load(numbers)
        pixels = np.ascontiguousarray(pixels)
        for place, problem in bad:
            pixels[place] = _GREY
            self.tell(int(numbers[place]), problem)
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)

    def tell(self, number: int, problem: str) -> None:
        """Warn of a picture that is damaged, the first time."""
        if number not in self._damaged:
            self._damaged.add(number)
            warnings.warn(f"{problem} A grey picture takes its place.", stacklevel=4)


class LazyFiles(LazyPictures):
    """Pictures in files of their own; one that has gone is a ValueError.

    Args:
        files: their paths.
        size: of the result.
    """

    def __init__(self, files: Sequence[str], size: int) -> None:
        super().__init__(self._decode, size)
        self.files = files

    def _decode(self, numbers: np.ndarray) -> Decoded:
        paths = [self.files[i] for i in numbers.tolist()]
        return collect(((path, self.size, path) for path in paths), len(paths), self.size)

    def tell(self, number: int, problem: str) -> None:
        if not os.path.exists(self.files[number]):
            raise ValueError(f"the data file {printable(self.files[number])} is gone.")
        super().tell(number, problem)


def _num_workers() -> int:
    return max(1, min(8, os.cpu_count() or 1))
