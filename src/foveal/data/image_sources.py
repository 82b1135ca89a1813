"""From the name of a data set to two `ImageSet`s: one to train on, one to score on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from foveal.common.inputs import require_file
from foveal.data.emoji import EMOJI, load_emoji
from foveal.data.examples import ExampleParts, Examples, all_of, in_parts
from foveal.data.folders import SPELLINGS, file_parts
from foveal.data.image_archives import find_archive
from foveal.data.image_examples import decode
from foveal.data.image_folders import find_folder
from foveal.data.image_hub import find_hub
from foveal.data.images import ImageDataConfig, ImageSet, check_image_config
from foveal.data.left_out import LeftOut
from foveal.data.walk import data_path, subfolders

Pair = tuple[ImageSet, ImageSet]


def open_images(config: ImageDataConfig) -> Pair:
    """The pictures to train on and those to score on.

    Raises:
        ValueError: no such data, no classes, no pictures, or an archive with other keys.
    """
    check_image_config(config)
    left = LeftOut()
    train, test = _pair(config, left)
    if len(train.classes) < 2:
        raise ValueError(
            f"data.path={config.path!r} has {len(train.classes)} class, but a classifier needs at "
            "least 2; put the pictures into a folder for each class."
        )
    sets = decode(train, config.size, left, config.max_images), decode(test, config.size, left)
    for part, what in zip(sets, ("to train on", "to score on"), strict=True):
        part.skipped = list(left.problems)
        _check_some(part, config.path, what)
    left.warn(config.path, "picture")
    return sets


def images_to_score(
    config: ImageDataConfig, data: str | None = None, classes: Sequence[str] | None = None
) -> ImageSet:
    """What a run is scored on: its own test part, else what it held out, or all of other data.

    Args:
        data: other data: their test part, else their validation part, else all of them.
        classes: those of the run; labels become places in them, and pictures of other classes
            are left out and counted.

    Raises:
        ValueError: no such data, or none of a known class.
    """
    check_image_config(config)
    left = LeftOut()
    if data is None:
        parts = _find(config, config.path, left)
        found = parts.test or _pair(config, left, parts)[1]
    else:
        found = _find(replace(config, max_images=0), data, left).scored()
    if classes is not None:
        known = found.with_classes(classes, left)
        if len(found) and not len(known):
            raise ValueError(
                f"the data must have classes of the run, {', '.join(classes)}; "
                f"{data or config.path} has {', '.join(found.classes)}."
            )
        found = known
    images = decode(found, config.size, left)
    images.skipped = list(left.problems)
    _check_some(images, data or config.path, "to score on")
    left.warn(data or config.path, "picture")
    return images


def _pair(
    config: ImageDataConfig, left: LeftOut, parts: ExampleParts | None = None
) -> tuple[Examples, Examples]:
    """Undecoded, to train on and to score on meanwhile."""
    parts = _find(config, config.path, left) if parts is None else parts
    if not config.valid:
        return parts.pair(config.held_out)
    held_out = _find(replace(config, max_images=0), config.valid, left).scored()
    return parts.train.without(held_out), held_out.with_classes(parts.train.classes, left)


def _check_some(images: ImageSet, path: str, what: str) -> None:
    if not len(images):
        reason = f"; the first of {len(images.skipped)} skipped: {images.skipped[0]}"
        raise ValueError(
            f"data.path={path!r} has no pictures {what}{reason if images.skipped else '.'}"
        )


def _find(config: ImageDataConfig, path: str, left: LeftOut) -> ExampleParts:
    """A data set by part, undecoded."""
    if path == EMOJI:
        return _find_emoji(config.size)
    if path.startswith(("hf:", "hf-stream:")):
        return find_hub(path, config.size, left, config.max_images)
    root = data_path(path)
    if path.endswith(".npz"):
        if not root.exists():
            raise ValueError(f"data.path must be an archive that exists, got {path!r}.")
        return find_archive(root, config.size, left)
    if not root.is_dir():
        if root.exists():
            require_file(root, "the data")
        what = "is a file" if root.exists() else "does not exist"
        raise ValueError(
            f"data.path={path!r} {what}; name a folder of class folders, a .npz archive, "
            "or 'emoji' for the embedded pictures."
        )
    archives = file_parts(sorted(root.glob("[!.]*.npz"))) if not subfolders(root) else None
    if archives is None:
        return find_folder(root, config.size, left)
    found = {
        part: find_archive(getattr(archives, part)[0], config.size, left).train
        for part in SPELLINGS
        if getattr(archives, part)
    }
    return in_parts(found, left)


def _find_emoji(size: int) -> ExampleParts:
    data = load_emoji(size)
    whole = all_of(
        EMOJI,
        np.asarray(data["label"], np.int64),
        [str(name) for name in data["classes"]],
        lambda index: (data["images"][index], []),
    )
    train, test = whole.divided(torch.from_numpy(data["is_test"]).bool().numpy())
    return ExampleParts(train, test=test)
