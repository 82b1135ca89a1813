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
from foveal.data.captions import CaptionedSet, PictureDataConfig, check_picture_config
from foveal.data.emoji import EMOJI, load_captioned_emoji
from foveal.data.examples import ExampleParts, Examples, Read, all_of
from foveal.data.folders import SPELLINGS, file_parts, folder_parts
from foveal.data.image_examples import collect
from foveal.data.left_out import LeftOut, printable
from foveal.data.pictures import SUFFIXES
from foveal.data.tables import is_table
from foveal.data.walk import data_path, walk

Pair = tuple[CaptionedSet, CaptionedSet]


def open_captions(config: PictureDataConfig) -> Pair:
    """The captioned pictures to train on and those to score on.

    Raises:
        ValueError: no such data, or none of it can be used.
    """
    check_picture_config(config)
    left = LeftOut()
    train, test = _pair(config, _find(config.path, config, left), left)
    sets = (
        _decode(train, config.size, left, config.max_images),
        _decode(test, config.size, left),
    )
    for part, what in zip(sets, ("to train on", "to score on"), strict=True):
        part.skipped = list(left.problems)
        _check_some(part, config.path, what, left)
    left.warn(config.path, "picture")
    return sets


def captions_to_score(config: PictureDataConfig, data: str | None = None) -> CaptionedSet:
    """What a run is scored on: its own test part, else what it held out, or all of other data.

    Args:
        data: other data: their test part, else their validation part, else all of them.

    Raises:
        ValueError: no such data, or none of it can be used.
    """
    check_picture_config(config)
    left = LeftOut()
    path = config.path if data is None else data
    parts = _find(path, config, left)
    found = parts.scored() if data is not None else parts.test or _pair(config, parts, left)[1]
    scored = _decode(found, config.size, left)
    scored.skipped = list(left.problems)
    _check_some(scored, path, "to score on", left)
    left.warn(path, "picture")
    return scored


def _pair(
    config: PictureDataConfig, parts: ExampleParts, left: LeftOut
) -> tuple[Examples, Examples]:
    if not config.valid:
        return parts.pair(config.held_out)
    held_out = _find(config.valid, config, left).scored()
    return parts.train.without(held_out), held_out


def _check_some(part: CaptionedSet, path: str, what: str, left: LeftOut) -> None:
    if not len(part):
        skipped = list(dict.fromkeys(part.skipped))
        reason = f"; skipped {len(skipped)}: {skipped[0]}" if skipped else "."
        kinds = f" Left out: {left.kinds()}." if left.kinds() else ""
        raise ValueError(f"data.path={path!r} has no captioned pictures {what}{reason}{kinds}")


def _find(path: str, config: PictureDataConfig, left: LeftOut) -> ExampleParts:
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
    """Parts that are folders, else parts that are archives, else all pictures below."""
    name = printable(root.name)
    folders = folder_parts(root)
    if folders is not None:
        for other in folders.others:
            left.add("folder beside the parts", other.name)
        found = {
            part: _examples(
                f"{name}, {printable(home.name)}",
                folder_entries(home, config.column, left),
                config.size,
            )
            for part in SPELLINGS
            for home in getattr(folders, part)
        }
        return ExampleParts(**found)
    below = walk(root, LeftOut())
    tables = file_parts(p for p in below if p.parent == root and is_table(p, json_too=True))
    if tables is not None:
        for other in tables.others:
            left.add("table beside the parts", other.name)
        found = {
            part: _examples(
                f"{name}, {part}",
                table_entries(getattr(tables, part), root, config.column, left),
                config.size,
            )
            for part in SPELLINGS
            if getattr(tables, part)
        }
        return ExampleParts(**found)
    archives = [path for path in below if is_archive(path.name)]
    if not archives or any(path.suffix.lower() in SUFFIXES for path in below):
        return ExampleParts(
            _examples(name, folder_entries(root, config.column, left), config.size)
        )
    parts = file_parts(path for path in archives if path.parent == root)
    if parts is None:
        return ExampleParts(_archives(archives, name, config, left))
    return ExampleParts(
        **{
            part: _archives(list(getattr(parts, part)), f"{name}, {part}", config, left)
            for part in SPELLINGS
            if getattr(parts, part)
        }
    )


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


def _decode(examples: Examples, size: int, left: LeftOut, limit: int = 0) -> CaptionedSet:
    """Read them; with a limit, no more than it takes to have so many that are good."""
    good, pieces = examples.read(left, limit)
    pairs = [pair for piece in pieces for pair in piece]
    pixels = np.zeros((len(pairs), size, size, 3), np.uint8)
    for place, (picture, _) in zip(pixels, pairs, strict=True):
        place[:] = picture
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    return CaptionedSet(good.name, images, [captions for _, captions in pairs], left.problems)
