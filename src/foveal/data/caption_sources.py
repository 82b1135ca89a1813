"""From the name of a data set to two `CaptionedSet`s: one to train on, one to score on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from foveal.common.inputs import require_file
from foveal.data.archives import archive_paths, is_archive
from foveal.data.caption_entries import (
    Entry,
    archive_entries,
    folder_entries,
    table_entries,
)
from foveal.data.captions import CaptionedSet, PictureDataConfig
from foveal.data.emoji import EMOJI, load_captioned_emoji
from foveal.data.examples import ExampleParts, Examples, Read, all_of, of_parts
from foveal.data.folders import file_parts, folder_parts
from foveal.data.image_examples import collect
from foveal.data.left_out import LeftOut, printable
from foveal.data.opening import Reader
from foveal.data.pictures import SUFFIXES
from foveal.data.tables import is_table
from foveal.data.walk import data_path, walk


def open_captions(config: PictureDataConfig) -> tuple[CaptionedSet, CaptionedSet]:
    """The captioned pictures to train on and those to score on.

    Raises:
        ValueError: no such data, or none of it can be used.
    """
    return CAPTIONED.pair(config)


def _find(config: PictureDataConfig, path: str, left: LeftOut, most: int) -> ExampleParts:
    """A data set by part, undecoded."""
    if path == EMOJI:
        return _find_emoji(config.size)
    if is_archive(path):
        paths = archive_paths(path)
        return ExampleParts(_archives(paths, printable(Path(path).name), config, left))
    root = data_path(path)
    if root.is_file() and is_table(root, json_too=True):
        listed = table_entries([root], root.parent, config.column, left)
        return ExampleParts(_examples(printable(root.name), listed, config.size))
    if not root.is_dir():
        if root.exists():
            require_file(root, "the data")
        what = "is a file" if root.exists() else "does not exist"
        raise ValueError(
            f"data.path={path!r} {what}; name a folder of captioned pictures, webdataset "
            "archives (.tar), or 'emoji' for the embedded pictures."
        )
    return _find_folder(root, config, left)


def _find_folder(root: Path, config: PictureDataConfig, left: LeftOut) -> ExampleParts:
    """Parts that are folders, tables or archives, else all pictures below."""

    def of_folder(homes: Sequence[Path], name: str) -> Examples:
        return _examples(name, folder_entries(homes[0], config.column, left), config.size)

    def of_tables(paths: Sequence[Path], name: str) -> Examples:
        return _examples(name, table_entries(paths, root, config.column, left), config.size)

    def of_archives(paths: Sequence[Path], name: str) -> Examples:
        return _archives(paths, name, config, left)

    name = printable(root.name)
    folders = folder_parts(root)
    if folders is not None:
        return ExampleParts(**of_parts(folders, root, left, of_folder))
    below = walk(root, LeftOut())
    beside = [path for path in below if path.parent == root]
    tables = file_parts(path for path in beside if is_table(path, json_too=True))
    if tables is not None:
        return ExampleParts(**of_parts(tables, root, left, of_tables))
    archives = [path for path in below if is_archive(path.name)]
    if not archives or any(path.suffix.lower() in SUFFIXES for path in below):
        return ExampleParts(of_folder((root,), name))
    parts = file_parts(path for path in archives if path.parent == root)
    if parts is None:
        return ExampleParts(of_archives(archives, name))
    return ExampleParts(**of_parts(parts, root, left, of_archives))


def _archives(
    paths: Sequence[Path], name: str, config: PictureDataConfig, left: LeftOut
) -> Examples:
    return _examples(name, list(archive_entries(list(paths), config.column, left)), config.size)


def _find_emoji(size: int) -> ExampleParts:
    data = load_captioned_emoji(size)
    pictures, captions = data["images"], data["caption"]

    def load(index: np.ndarray) -> Read:
        return [(pictures[i], [str(captions[i])]) for i in index], []

    whole = all_of(EMOJI, np.zeros(len(captions), np.int64), [""], load)
    train, test = whole.divided(data["is_test"])
    return ExampleParts(train, test=test)


def _examples(name: str, entries: list[Entry], size: int) -> Examples:
    """Pictures with captions, undecoded: all of one class, for captions know none."""

    def load(index: np.ndarray) -> Read:
        chosen = [entries[i] for i in index]
        jobs = ((entry.source, size, entry.called) for entry in chosen)
        pixels, bad = collect(jobs, len(chosen), size)
        return [(one, e.captions) for one, e in zip(pixels, chosen, strict=True)], bad

    files = [entry.source for entry in entries if isinstance(entry.source, str)]
    return all_of(
        name,
        np.zeros(len(entries), np.int64),
        [""],
        load,
        files=files if len(files) == len(entries) else (),
    )


def _read(config: PictureDataConfig, examples: Examples, left: LeftOut, most: int) -> CaptionedSet:
    good, pieces = examples.read(left, most)
    pairs = [pair for piece in pieces for pair in piece]
    pixels = np.zeros((len(pairs), config.size, config.size, 3), np.uint8)
    for place, (picture, _) in zip(pixels, pairs, strict=True):
        place[:] = picture
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    return CaptionedSet(good.name, images, [captions for _, captions in pairs], left.problems)


CAPTIONED = Reader(_find, _read, "picture", "captioned pictures", classified=False)
captions_to_score = CAPTIONED.to_score
