"""From the path of a data set to two `SequenceSet`s: one to train on, one to score on."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveal.data import listops
from foveal.data.folders import TEST, TRAIN, child, subfolders
from foveal.data.image_sources import open_images
from foveal.data.images import ImageDataConfig, ImageSet
from foveal.data.sequences import SequenceDataConfig, SequenceSet, check_sequence_config

LISTOPS = "listops"
_TEXT = (".txt", ".md", ".py", ".rst", ".html", ".csv")
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
    elif config.path.endswith(".npz"):
        train, test = _pixels(config)
    elif config.path.startswith("hf:"):
        train, test = _datasets(config)
    else:
        train, test = _folder(config)
    if config.max_examples:
        train = train.subset(_shuffled(len(train))[: config.max_examples], train.name)
    for part, what in ((train, "to train on"), (test, "to score on")):
        if not len(part) or len(part.classes) < 2:
            raise ValueError(
                f"data.path={config.path!r} has {len(part)} sequences of {len(part.classes)} "
                f"classes {what}, but a classifier needs at least one, and two classes."
            )
    return train, test


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


def _pixels(config: SequenceDataConfig) -> Pair:
    """Grey pixels of an archive of pictures, row by row."""
    images = ImageDataConfig(path=config.path, size=config.size, held_out=config.held_out)
    train, test = open_images(images)
    return _flat(train, config.length), _flat(test, config.length)


def _flat(images: ImageSet, length: int) -> SequenceSet:
    luma = torch.tensor(_LUMA)[:, None, None]
    grey = [
        (images.read(part).float() * luma).sum(1).round().byte().flatten(1)[:, :length]
        for part in torch.arange(len(images)).split(_BATCH)
    ]
    rows = list(torch.cat(grey).numpy())
    return SequenceSet(
        f"{images.name}, grey", rows, images.labels, images.classes, 256, images.skipped
    )


def _folder(config: SequenceDataConfig) -> Pair:
    root = Path(config.path).expanduser()
    if not root.is_dir():
        raise ValueError(
            f"data.path={config.path!r} is no folder; name 'listops', a folder of class folders "
            "of text files, a .npz archive of pictures, or 'hf:NAME'."
        )
    train_root, test_root = child(root, TRAIN), child(root, TEST)
    # what cannot be scored on is not trained on: IMDB has a folder of reviews without a class
    classes = subfolders(test_root or train_root or root)
    train = _read_folder(train_root or root, classes, config.length)
    if train_root is None or test_root is None:
        return _split(train, config.held_out)
    return train, _read_folder(test_root, classes, config.length)


def _read_folder(root: Path, classes: list[str], length: int) -> SequenceSet:
    sequences, labels, skipped = [], [], []
    for label, name in enumerate(classes):
        for path in sorted((root / name).rglob("*")):
            if path.suffix.lower() not in _TEXT or not path.is_file():
                continue
            with path.open("rb") as file:
                found = np.frombuffer(file.read(length), np.uint8)
            if not len(found):
                skipped.append(f"{path} is empty.")
                continue
            sequences.append(found)
            labels.append(label)
    return SequenceSet(str(root), sequences, labels, classes, 256, skipped)


def _datasets(config: SequenceDataConfig) -> Pair:
    """A text data set with a ClassLabel column, such as hf:imdb."""
    name = config.path.removeprefix("hf:")
    try:
        import datasets
    except ModuleNotFoundError:
        raise ValueError(
            f"data.path={config.path!r} needs the package datasets: pip install datasets"
        ) from None
    try:
        found = datasets.load_dataset(name)
    except Exception as error:  # the package has many ways to say no
        raise ValueError(f"datasets cannot load {name!r}: {error}") from None
    train = _read_split(found["train"], name, config.length)
    test = next((split for split in TEST if split in found), None)
    if test is None:
        return _split(train, config.held_out)
    return train, _read_split(found[test], name, config.length)


def _read_split(split: Any, name: str, length: int) -> SequenceSet:
    import datasets

    features = split.features
    label = next((k for k, v in features.items() if isinstance(v, datasets.ClassLabel)), None)
    text = next((k for k, v in features.items() if getattr(v, "dtype", "") == "string"), None)
    if label is None or text is None:
        raise ValueError(
            f"the data set {name!r} must have a text and a ClassLabel column, it has "
            f"{', '.join(features)}."
        )
    rows = [(item[text].encode()[:length], item[label]) for item in split]
    rows = [(row, value) for row, value in rows if row]
    return SequenceSet(
        name,
        [np.frombuffer(row, np.uint8) for row, _ in rows],
        [value for _, value in rows],
        features[label].names,
    )


def _split(whole: SequenceSet, held_out: float) -> Pair:
    """A share of every class is kept for scoring."""
    is_test = torch.zeros(len(whole), dtype=torch.bool)
    for label in range(len(whole.classes)):
        mine = (whole.labels == label).nonzero()[:, 0]
        count = max(round(len(mine) * held_out), 1) if len(mine) > 1 else 0
        is_test[mine[_shuffled(len(mine))[:count]]] = True
    index = torch.arange(len(whole))
    train = whole.subset(index[~is_test], f"{whole.name}, training part")
    return train, whole.subset(index[is_test], f"{whole.name}, held-out part")


def _shuffled(count: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))
