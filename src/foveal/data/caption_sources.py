"""From the name of a data set to two `CaptionedSet`s: one to train on, one to score on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from foveal.data.archives import is_archive
from foveal.data.caption_entries import (
    Entry,
    archive_entries,
    folder_entries,
    table_entries,
)
from foveal.data.captioned_set import CaptionedSet, Chosen, LazyCaptionedSet
from foveal.data.captions import PictureDataConfig
from foveal.data.emoji import EMOJI, load_captioned_emoji
from foveal.data.examples import ExampleParts, Examples, Read, all_of, of_parts
from foveal.data.folders import file_parts, folder_parts
from foveal.data.hub_captions import hub_captions
from foveal.data.image_hub import HUB, STREAM
from foveal.data.images import Decoded, collect, is_too_large
from foveal.data.opening import Reader
from foveal.data.pictures import SUFFIXES
from foveal.data.remote import is_remote
from foveal.data.shards import Captions, File, Shards, is_plain_tar, tar_files
from foveal.data.tables import is_table
from foveal.data.walk import LeftOut, data_folder, data_path, printable, walk


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
    if path.startswith(HUB):
        return _of_hub(path, config, left)
    if path.startswith(STREAM):
        raise ValueError(
            f"data.path={path!r} has no end, and captions are learned from all of them; use "
            "hf:NAME instead."
        )
    if is_archive(path):
        name = printable(Path(path).name)
        return ExampleParts(_archives(tar_files(path), name, config, left))
    if is_remote(path):
        raise ValueError(
            f"data.path={path!r} must name webdataset archives (.tar): of captioned pictures only "
            "those are read behind an address."
        )
    root = data_path(path)
    if root.is_file() and is_table(root, json_too=True):
        listed = table_entries([root], root.parent, config.column, left)
        return ExampleParts(_examples(printable(root.name), listed, config.size))
    advice = (
        "a folder of captioned pictures, webdataset archives (.tar), or 'emoji' for the embedded "
        "pictures"
    )
    return _find_folder(data_folder(path, advice), config, left)


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
        found = of_parts(tables, root, left, of_tables)
        named = {file for part in found.values() for file in part.files}
        _count_rest([path for path in below if str(path) not in named], left)
        return ExampleParts(**found)
    archives = [path for path in below if is_archive(path.name)]
    if not archives or any(path.suffix.lower() in SUFFIXES for path in below):
        return ExampleParts(of_folder((root,), name))
    _count_rest(below, left)
    parts = file_parts(path for path in archives if path.parent == root)
    if parts is None:
        return ExampleParts(of_archives(archives, name))
    return ExampleParts(**of_parts(parts, root, left, of_archives))


def _count_rest(paths: Sequence[Path], left: LeftOut) -> None:
    """Count files that are not used; tables and archives beside the parts are, as such."""
    for path in paths:
        if not is_archive(path.name) and not is_table(path, json_too=True):
            left.add_file(path)


def _archives(
    files: Sequence[File], name: str, config: PictureDataConfig, left: LeftOut
) -> Examples:
    """Samples of archives: read where they lie in plain tars, held in memory of others."""
    if all(is_plain_tar(file) for file in files):
        return _of_shards(Shards(files, config.column, left), name, config.size, left)
    paths = [file for file in files if isinstance(file, Path)]
    if len(paths) < len(files):
        raise ValueError(
            f"{name} must be plain tars, which are read in ranges, but one is packed or no tar; "
            "unpack it, or copy the archives here."
        )
    return _examples(name, list(archive_entries(paths, config.column, left)), config.size)


def _of_shards(shards: Shards, name: str, size: int, left: LeftOut) -> Examples:
    """The samples that have captions; what is wrong with others is told."""
    for number in np.flatnonzero(shards.counts == 0).tolist():
        left.problems.append(shards.problem(number) or f"{shards.called(number)} has no caption.")
    rows = np.flatnonzero(shards.counts)
    return _unread(name, rows, lambda index: shards.decode(index, size), Captions(shards))


def _of_hub(path: str, config: PictureDataConfig, left: LeftOut) -> ExampleParts:
    """The parts of a data set of Hugging Face with a column of pictures and one of texts."""
    found = {}
    for part, (pictures, captions) in hub_captions(path, config.column, config.size).items():
        rows = np.array([i for i, texts in enumerate(captions) if texts], np.int64)
        for number in sorted({*range(len(captions))} - {*rows.tolist()}):
            left.problems.append(f"picture {number} of {path} has no caption.")
        found[part] = _unread(f"{path}, {part} part", rows, pictures, captions)
    return ExampleParts(**found)


def _unread(
    name: str,
    rows: np.ndarray,
    pictures: Callable[[np.ndarray], Decoded],
    captions: Sequence[list[str]],
) -> Examples:
    """Examples at some rows of a source, which are read when they are needed."""
    texts = Chosen(captions, rows)

    def load(index: np.ndarray) -> Read:
        pixels, bad = pictures(rows[index])
        return [(one, texts[i]) for one, i in zip(pixels, index, strict=True)], bad

    labels = np.zeros(len(rows), np.int64)
    return all_of(
        name, labels, [""], load, pictures=lambda index: pictures(rows[index]), texts=texts
    )


def _find_emoji(size: int) -> ExampleParts:
    data = load_captioned_emoji(size)
    pictures, captions = data["images"], data["caption"]

    def load(index: np.ndarray) -> Read:
        return [(pictures[i], [str(captions[i])]) for i in index], []

    whole = all_of(EMOJI, np.zeros(len(captions), np.int64), [""], load)
    return whole.in_parts(data["is_test"])


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
        texts=[entry.captions for entry in entries],
    )


def _read(config: PictureDataConfig, examples: Examples, left: LeftOut, most: int) -> CaptionedSet:
    count = min(most or len(examples), len(examples))
    if is_too_large(examples, count, config.size):
        chosen = examples.chosen(most).subset(np.arange(count))
        return LazyCaptionedSet(chosen, config.size, left.problems)
    good, pieces = examples.read(left, most)
    pairs = [pair for piece in pieces for pair in piece]
    pixels = np.zeros((len(pairs), config.size, config.size, 3), np.uint8)
    for place, (picture, _) in zip(pixels, pairs, strict=True):
        place[:] = picture
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    return CaptionedSet(good.name, images, [captions for _, captions in pairs], left.problems)


CAPTIONED = Reader(_find, _read, "picture", "captioned pictures", classified=False)
captions_to_score = CAPTIONED.to_score
