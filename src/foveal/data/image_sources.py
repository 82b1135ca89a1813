"""From the name of a data set to two `ImageSet`s: one to train on, one to score on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from foveal.data.archives import is_archive
from foveal.data.class_folders import find_pictures
from foveal.data.emoji import EMOJI, load_emoji
from foveal.data.examples import ExampleParts, Examples, all_of, in_parts, of_parts
from foveal.data.folders import file_parts
from foveal.data.image_archives import find_archive
from foveal.data.image_hub import HUB, STREAM, find_hub
from foveal.data.image_shards import find_shards, of_shards
from foveal.data.images import ImageSet, decode
from foveal.data.opening import Reader
from foveal.data.remote import is_remote
from foveal.data.walk import LeftOut, data_folder, data_path, printable, subfolders


def find_images(config: Any, path: str, left: LeftOut, most: int) -> ExampleParts:
    """A data set by part, undecoded."""
    if path == EMOJI:
        return _find_emoji(config.size)
    if path.startswith((HUB, STREAM)):
        return find_hub(path, config.size, left, most)
    if is_archive(path) and not path.lower().endswith(".zip"):
        return ExampleParts(find_shards(path, config.size, left))
    if is_remote(path):
        raise ValueError(
            f"data.path={path!r} must name webdataset archives (.tar): of pictures only those are "
            "read behind an address."
        )
    root = data_path(path)
    if path.endswith(".npz"):
        if not root.exists():
            raise ValueError(f"data.path must be an archive that exists, got {path!r}.")
        return find_archive(root, config.size, left)
    root = data_folder(
        path,
        "a folder of class folders, a .npz archive, webdataset archives (.tar), or 'emoji' for "
        "the embedded pictures",
    )
    return _find_folder(root, config.size, left)


def _find_folder(root: Path, size: int, left: LeftOut) -> ExampleParts:
    """Class folders; where there are none, archives, each of the part that its name tells."""

    def shards_of(paths: Sequence[Path], name: str) -> Examples:
        return of_shards(paths, name, size, left)

    def archive_of(paths: Sequence[Path], name: str) -> Examples:
        return _the_archive(paths, size, left)

    packed: dict[str, list[Path]] = {".tar": [], ".npz": []}
    if not subfolders(root):
        packed = {ending: sorted(root.glob(f"[!.]*{ending}")) for ending in packed}
    tars, arrays = packed.values()
    parts = file_parts(tars or arrays)
    if parts is None and not tars:
        return find_pictures(root, size, left)
    left.add_beside(root, tars or arrays)
    if parts is None:
        return ExampleParts(shards_of(tars, printable(root.name)))
    return in_parts(of_parts(parts, root, left, shards_of if tars else archive_of), left)


def _the_archive(paths: Sequence[Path], size: int, left: LeftOut) -> Examples:
    """The examples of a part, which is one archive."""
    if len(paths) > 1:
        names = ", ".join(printable(path.name) for path in paths[:3])
        raise ValueError(
            f"a part of {printable(paths[0].parent)} must be one .npz archive, got {len(paths)}: "
            f"{names}; join them, or name one."
        )
    return find_archive(paths[0], size, left).train


def _find_emoji(size: int) -> ExampleParts:
    data = load_emoji(size)
    whole = all_of(
        EMOJI,
        np.asarray(data["label"], np.int64),
        [str(name) for name in data["classes"]],
        lambda index: (data["images"][index], []),
    )
    return whole.in_parts(data["is_test"].astype(bool))


def _read(config: Any, examples: Examples, left: LeftOut, most: int) -> ImageSet:
    return decode(examples, config.size, left, most)


PICTURES = Reader(find_images, _read, "picture", "pictures")
"""Of ImageDataConfig, and others with its path, valid, size, held_out and max_images."""

open_images, images_to_score = PICTURES.pair, PICTURES.to_score
