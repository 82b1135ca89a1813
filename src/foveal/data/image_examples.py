"""Decoding many pictures: at once into memory, or a batch at a time."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from foveal.data.examples import Examples
from foveal.data.images import ImageSet
from foveal.data.left_out import LeftOut, printable
from foveal.data.pictures import try_square

IN_MEMORY = 2 << 30  # bytes of pixels up to which a data set is decoded once

Job = tuple[str | bytes, int, str]
"""A picture (path or bytes of a file), the size to make it, what to call it."""

Decoded = tuple[np.ndarray, list[tuple[int, str]]]
"""Pixels uint8 (n, size, size, 3), and what was wrong with some, by place."""


def decode(examples: Examples, size: int, left: LeftOut, limit: int = 0) -> ImageSet:
    """Read pictures into memory, or where that is too small, when they are needed.

    Args:
        limit: choose so many at random, and decode no more than it takes to have them.
    """
    most = min(limit or len(examples), len(examples))
    if examples.files and most * size**2 * 3 > IN_MEMORY:
        chosen = examples.chosen(limit).subset(np.arange(most))
        lazy = LazyFiles([examples.files[i] for i in chosen.places], size)
        return ImageSet(chosen.name, torch.from_numpy(chosen.labels), chosen.classes, lazy)
    good, pieces = examples.read(left, limit)
    pieces = pieces or [np.zeros((0, size, size, 3), np.uint8)]
    pixels = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    return ImageSet.from_pixels(good.name, pixels, good.labels, good.classes, left.problems)


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


class LazyFiles:
    """Decodes the pictures of a batch when they are asked for, several at a time.

    A damaged file comes out as a grey picture, with a warning that names it once; one that has
    gone is a ValueError.

    Args:
        files: their paths.
        size: of the result.
    """

    def __init__(self, files: Sequence[str], size: int) -> None:
        self.files, self.size = files, size
        self._pool = ThreadPoolExecutor(_num_workers())
        self._damaged: set[str] = set()

    def __call__(self, index: Tensor) -> Tensor:
        paths = [self.files[i] for i in index.reshape(-1).tolist()]
        pixels = torch.full((len(paths), self.size, self.size, 3), 128, dtype=torch.uint8)
        jobs = ((path, self.size, path) for path in paths)
        for number, result in enumerate(self._pool.map(try_square, jobs)):
            if not isinstance(result, str):
                pixels[number] = torch.from_numpy(result)
            elif not os.path.exists(paths[number]):
                raise ValueError(f"the data file {printable(paths[number])} is gone.")
            elif paths[number] not in self._damaged:
                self._damaged.add(paths[number])
                warnings.warn(f"{result} A grey picture takes its place.", stacklevel=2)
        return pixels.permute(0, 3, 1, 2)


def _num_workers() -> int:
    return max(1, min(8, os.cpu_count() or 1))
