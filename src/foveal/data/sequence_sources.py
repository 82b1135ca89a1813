"""From the path of a data set to two `SequenceSet`s: one to train on, one to score on."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from foveal.data import listops
from foveal.data.examples import Examples, shuffled
from foveal.data.image_sources import images_to_score, open_images
from foveal.data.images import ImageDataConfig, ImageSet
from foveal.data.left_out import LeftOut
from foveal.data.opening import Reader, check_data
from foveal.data.sequence_files import find_texts
from foveal.data.sequences import SequenceDataConfig, SequenceSet

LISTOPS = "listops"
_LUMA = (0.299, 0.587, 0.114)  # of ITU-R BT.601, as Pillow's "L"
_BATCH = 1024

Pair = tuple[SequenceSet, SequenceSet]


def open_sequences(config: SequenceDataConfig) -> Pair:
    """The sequences to train on and those to score on.

    Raises:
        ValueError: no such data, no classes or no sequences.
    """
    if config.path == LISTOPS:
        check_data(config)
        train, test = _generated(config)
        if config.valid:
            test = sequences_to_score(config, config.valid, test.classes)
    elif config.path.endswith(".npz"):
        train, test = (_flat(part, config.length) for part in open_images(_images_of(config)))
    else:
        train, test = _READER.pair(config, config.max_examples)
    if config.max_examples and len(train) > config.max_examples:
        chosen = shuffled(len(train))[: config.max_examples]
        train = train.subset(torch.from_numpy(chosen), train.name)
    return train, test


def sequences_to_score(
    config: SequenceDataConfig, data: str | None = None, classes: Sequence[str] | None = None
) -> SequenceSet:
    """What a run is scored on; see `Reader.to_score`."""
    path = config.path if data is None else data
    if path == LISTOPS:
        check_data(config)
        if data is None and config.valid:
            return sequences_to_score(config, config.valid, classes)
        return _generated(config)[1]
    if path.endswith(".npz"):
        return _flat(images_to_score(_images_of(config), data, classes), config.length)
    return _READER.to_score(config, data, classes)


def _generated(config: SequenceDataConfig) -> Pair:
    """Expressions; the held-out ones come first, so that they do not depend on how many follow."""
    count = config.test_examples + config.train_examples
    made = list(itertools.islice(listops.generate(count), count))
    made = [(tokens[: config.length], value) for tokens, value in made]
    parts = made[config.test_examples :], made[: config.test_examples]
    train, test = (
        SequenceSet(
            f"ListOps, {name} part",
            [tokens for tokens, _ in part],
            [value for _, value in part],
            [str(value) for value in range(10)],
            listops.NUM_TOKENS,
        )
        for part, name in zip(parts, ("training", "held-out"), strict=True)
    )
    return train, test


def _images_of(config: SequenceDataConfig) -> ImageDataConfig:
    return ImageDataConfig(
        path=config.path,
        valid=config.valid,
        size=config.size,
        held_out=config.held_out,
        max_images=config.max_examples,
    )


def _flat(images: ImageSet, length: int) -> SequenceSet:
    """Grey pixels of pictures, row by row."""
    luma = torch.tensor(_LUMA)[:, None, None]
    grey = [
        (images.read(part).float() * luma).sum(1).round().byte().flatten(1)[:, :length]
        for part in torch.arange(len(images)).split(_BATCH)
    ]
    rows = list(torch.cat(grey).numpy())
    return SequenceSet(
        f"{images.name}, grey", rows, images.labels, images.classes, 256, images.skipped
    )


def _read(config: SequenceDataConfig, examples: Examples, left: LeftOut, most: int) -> SequenceSet:
    good, pieces = examples.read(left, most)
    rows = [row for piece in pieces for row in piece]
    return SequenceSet(good.name, rows, good.labels, good.classes, 256)


_READER = Reader(find_texts, _read, "sequence", "sequences")
