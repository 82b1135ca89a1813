"""From the path of a data set to two `SequenceSet`s: one to train on, one to score on."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from foveal.data import listops
from foveal.data.examples import ExampleParts, Examples
from foveal.data.image_sources import images_to_score, open_images
from foveal.data.images import ImageDataConfig, ImageSet
from foveal.data.left_out import LeftOut
from foveal.data.sequence_files import find_texts
from foveal.data.sequences import SequenceDataConfig, SequenceSet, check_sequence_config

LISTOPS = "listops"
_LUMA = (0.299, 0.587, 0.114)  # of ITU-R BT.601, as Pillow's "L"
_BATCH = 1024

Pair = tuple[SequenceSet, SequenceSet]


def open_sequences(config: SequenceDataConfig) -> Pair:
    """The sequences to train on and those to score on.

    Raises:
        ValueError: no such data, no classes or no sequences.
    """
    check_sequence_config(config)
    if config.path == LISTOPS:
        train, test = _generated(config)
        if config.valid:
            test = sequences_to_score(config, config.valid, test.classes)
    elif config.path.endswith(".npz"):
        train, test = (_flat(part, config.length) for part in open_images(_images_of(config)))
    else:
        train, test = _texts(config)
    if config.max_examples and len(train) > config.max_examples:
        train = train.subset(_shuffled(len(train))[: config.max_examples], train.name)
    for part, what in ((train, "to train on"), (test, "to score on")):
        if not len(part) or len(part.classes) < 2:
            raise ValueError(
                f"data.path={config.path!r} has {len(part)} sequences of {len(part.classes)} "
                f"classes {what}, but a classifier needs at least one, and two classes."
            )
    return train, test


def sequences_to_score(
    config: SequenceDataConfig, data: str | None = None, classes: Sequence[str] | None = None
) -> SequenceSet:
    """What a run is scored on: its own test part, else what it held out, or all of other data.

    Args:
        data: other data: their test part, else their validation part, else all of them.
        classes: those of the run; labels become places in them, and sequences of other classes
            are left out and counted.

    Raises:
        ValueError: no such data, or none of a known class.
    """
    check_sequence_config(config)
    path = config.path if data is None else data
    if path == LISTOPS:
        if data is None and config.valid:
            return sequences_to_score(config, config.valid, classes)
        return _generated(config)[1]
    if path.endswith(".npz"):
        return _flat(images_to_score(_images_of(config), data, classes), config.length)
    left = LeftOut()
    parts = find_texts(path, config, left)
    found = parts.scored() if data is not None else parts.test or _pair(config, parts, left)[1]
    if classes is not None:
        known = found.with_classes(classes, left)
        if len(found) and not len(known):
            raise ValueError(
                f"the data must have classes of the run, {', '.join(classes)}; {path} has "
                f"{', '.join(found.classes)}."
            )
        found = known
    scored = _read(found, left)
    if not len(scored):
        raise ValueError(f"data.path={path!r} has no sequences to score on.")
    left.warn(path, "sequence")
    return scored


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


def _texts(config: SequenceDataConfig) -> Pair:
    left = LeftOut()
    train, test = _pair(config, find_texts(config.path, config, left), left)
    sets = _read(train, left, config.max_examples), _read(test, left)
    for part in sets:
        part.skipped = list(left.problems)
    left.warn(config.path, "sequence")
    return sets


def _pair(
    config: SequenceDataConfig, parts: ExampleParts, left: LeftOut
) -> tuple[Examples, Examples]:
    if not config.valid:
        return parts.pair(config.held_out)
    held_out = find_texts(config.valid, config, left).scored()
    return parts.train.without(held_out), held_out.with_classes(parts.train.classes, left)


def _read(examples: Examples, left: LeftOut, limit: int = 0) -> SequenceSet:
    good, pieces = examples.read(left, limit)
    rows = [row for piece in pieces for row in piece]
    return SequenceSet(good.name, rows, good.labels, good.classes, 256, left.problems)


def _shuffled(count: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))
