"""Where sequences come from: generated expressions, texts with classes, rows of grey pixels."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch

from foveal.data import listops
from foveal.data.examples import ExampleParts, Examples, Read, all_of
from foveal.data.image_sources import find_images
from foveal.data.left_out import LeftOut
from foveal.data.opening import Reader
from foveal.data.sequence_files import find_texts
from foveal.data.sequences import SequenceDataConfig, SequenceSet

LISTOPS = "listops"
_LUMA = (0.299, 0.587, 0.114)  # of ITU-R BT.601, as Pillow's "L"
_BATCH = 1024


def _find(config: SequenceDataConfig, path: str, left: LeftOut, most: int) -> ExampleParts:
    if path == LISTOPS:
        return _generated(config)
    if path.endswith(".npz"):
        return find_images(config, path, left, most)
    return find_texts(config, path, left)


def _generated(config: SequenceDataConfig) -> ExampleParts:
    """Expressions; the held-out ones come first, so that they do not depend on how many follow."""
    count = config.test_examples + config.train_examples
    made = list(itertools.islice(listops.generate(count), count))
    rows = [tokens[: config.length] for tokens, _ in made]

    def load(index: np.ndarray) -> Read:
        return [rows[i] for i in index], []

    labels = np.array([value for _, value in made], np.int64)
    whole = all_of("ListOps", labels, [str(value) for value in range(10)], load)
    train, test = whole.divided(np.arange(count) < config.test_examples)
    return ExampleParts(train, test=test)


def _read(config: SequenceDataConfig, examples: Examples, left: LeftOut, most: int) -> SequenceSet:
    good, pieces = examples.read(left, most)
    name = good.name
    if any(isinstance(piece, np.ndarray) for piece in pieces):  # of pictures
        name, pieces = f"{name}, grey", [_grey(piece)[:, : config.length] for piece in pieces]
    rows = [row for piece in pieces for row in piece]
    num_tokens = listops.NUM_TOKENS if config.path == LISTOPS else 256
    return SequenceSet(name, rows, good.labels, good.classes, num_tokens)


def _grey(pixels: np.ndarray) -> np.ndarray:
    """Pictures (n, size, size, 3) row by row, as bytes (n, size * size)."""
    luma = torch.tensor(_LUMA)[:, None, None]
    parts = torch.from_numpy(pixels).permute(0, 3, 1, 2).split(_BATCH)
    grey = [(part.float() * luma).sum(1).round().byte().flatten(1) for part in parts]
    flat: Any = torch.cat(grey).numpy()
    return flat


SEQUENCES = Reader(_find, _read, "sequence", "sequences", limit="max_examples")

open_sequences, sequences_to_score = SEQUENCES.pair, SEQUENCES.to_score
