"""From the name of a data set to two `CaptionedSet`s: one to train on, one to score on."""

from __future__ import annotations

import glob
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveal.data.captions import CaptionedSet, PictureDataConfig, check_picture_config
from foveal.data.emoji import EMOJI, load_captioned_emoji
from foveal.data.folders import split_folders
from foveal.data.image_sources import collect, warn_of
from foveal.data.pictures import SUFFIXES

_METADATA = "metadata.jsonl"
_CAPTION_KEYS = ("text", "caption", "captions")

Entry = tuple[str | bytes, list[str], str]
"""A picture (path or bytes of a file), its captions, and what to call it."""

Pair = tuple[CaptionedSet, CaptionedSet]


def open_captions(config: PictureDataConfig) -> Pair:
    """The captioned pictures to train on and those to score on.

    Raises:
        ValueError: no such data, or none of it can be used.
    """
    check_picture_config(config)
    path = config.path
    if path == EMOJI:
        train, test = _open_emoji(config)
    elif ".tar" in Path(path).suffixes:
        train, test = _split(_read_all(_archive_entries(path), config, Path(path).name), config)
    else:
        train, test = _open_folder(config)
    if config.max_images:
        train = train.subset(_shuffled(len(train))[: config.max_images], train.name)
    skipped = list(dict.fromkeys(train.skipped + test.skipped))
    for part, what in ((train, "to train on"), (test, "to score on")):
        if not len(part):
            raise ValueError(
                f"data.path={path!r} has no captioned pictures {what}"
                + (f"; skipped {len(skipped)}: {skipped[0]}" if skipped else ".")
            )
    warn_of(skipped, path)
    return train, test


def _open_emoji(config: PictureDataConfig) -> Pair:
    data = load_captioned_emoji(config.size)
    pixels = torch.from_numpy(data["images"]).permute(0, 3, 1, 2)
    whole = CaptionedSet(EMOJI, pixels, [[str(text)] for text in data["caption"]])
    return _parts(whole, torch.from_numpy(data["is_test"]))


def _open_folder(config: PictureDataConfig) -> Pair:
    root = Path(config.path).expanduser()
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise ValueError(
            f"data.path={config.path!r} {what}; name a folder of captioned pictures, webdataset "
            "archives (.tar), or 'emoji' for the embedded pictures."
        )
    train_root, test_root = split_folders(root)
    train = _read_all(_folder_entries(train_root), config, train_root.name)
    if test_root is None:
        return _split(train, config)
    return train, _read_all(_folder_entries(test_root), config, test_root.name)


def _read_all(
    entries: Iterator[Entry | str], config: PictureDataConfig, name: str
) -> CaptionedSet:
    """Decode every picture that has a caption; what cannot be used is counted."""
    found, skipped = [], []
    for entry in entries:
        if isinstance(entry, str):
            skipped.append(entry)
        elif not entry[1]:
            skipped.append(f"{entry[2]} has no caption.")
        else:
            found.append(entry)
    jobs = ((source, config.size, called) for source, _, called in found)
    pixels, bad = collect(jobs, len(found), config.size)
    good = np.ones(len(found), dtype=bool)
    good[[number for number, _ in bad]] = False
    captions = [texts for (_, texts, _), whole in zip(found, good, strict=True) if whole]
    images = torch.from_numpy(pixels[good]).permute(0, 3, 1, 2)
    return CaptionedSet(name, images, captions, skipped + [problem for _, problem in bad])


def _split(whole: CaptionedSet, config: PictureDataConfig) -> Pair:
    is_test = torch.zeros(len(whole), dtype=torch.bool)
    count = max(1, round(len(whole) * config.held_out)) if len(whole) > 1 else 0
    is_test[_shuffled(len(whole))[:count]] = True
    return _parts(whole, is_test)


def _parts(whole: CaptionedSet, is_test: Tensor) -> Pair:
    index = torch.arange(len(whole))
    train = whole.subset(index[~is_test], f"{whole.name}, training part")
    return train, whole.subset(index[is_test], f"{whole.name}, held-out part")


def _shuffled(count: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))


def _lines(text: str) -> list[str]:
    """The captions in a text: one a line."""
    return [line.strip() for line in text.splitlines() if line.strip()]


# -- folders --------------------------------------------------------------------------------------


def _folder_entries(root: Path) -> Iterator[Entry | str]:
    """Every picture below a folder, with captions from metadata.jsonl or a .txt beside it."""
    listed: dict[Path, list[str]] = {}
    for table in sorted(root.rglob(_METADATA)):
        yield from _read_metadata(table, listed)
    pictures = {p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()}
    for path in sorted(pictures | listed.keys()):
        captions = listed.get(path)
        beside = path.with_suffix(".txt")
        if captions is None and beside.is_file():
            captions = _lines(beside.read_text(encoding="utf-8", errors="replace"))
        yield str(path), captions or [], str(path)


def _read_metadata(table: Path, listed: dict[Path, list[str]]) -> Iterator[str]:
    """Fill `listed` from a metadata.jsonl; yields what was wrong with some of its lines."""
    for number, line in enumerate(table.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            path = table.parent / str(values["file_name"])
            listed[path] = _captions_of(values)
        except (ValueError, KeyError, TypeError):
            yield f"line {number} of {table} is not JSON with file_name and text."


def _captions_of(values: dict[str, Any]) -> list[str]:
    for key in _CAPTION_KEYS:
        text = values.get(key)
        if text:
            return [str(one) for one in text] if isinstance(text, list) else _lines(str(text))
    return []


# -- webdataset -----------------------------------------------------------------------------------


def _archive_entries(pattern: str) -> Iterator[Entry | str]:
    """Samples of webdataset archives: members that share their path up to the first dot."""
    paths = _archive_paths(pattern)
    for path in paths:
        try:
            with tarfile.open(path, "r:*") as archive:
                yield from _samples(archive, path)
        except (tarfile.TarError, OSError, EOFError) as error:
            yield f"{path} is damaged or no archive: {error}."


def _samples(archive: tarfile.TarFile, path: str) -> Iterator[Entry | str]:
    """Neighbouring members with the same key make a sample."""
    key = ("", "")
    sample: dict[str, bytes] = {}
    for member in archive:
        if not member.isfile():
            continue
        folder, _, name = member.name.rpartition("/")
        stem, _, suffix = name.partition(".")
        if (folder, stem) != key:
            yield from _sample(sample, path, key)
            key, sample = (folder, stem), {}
        stream = archive.extractfile(member)  # into memory: nothing is written anywhere
        sample[suffix.lower()] = stream.read() if stream else b""
    yield from _sample(sample, path, key)


def _sample(sample: dict[str, bytes], path: str, key: tuple[str, str]) -> Iterator[Entry | str]:
    pictures = [name for name in sample if f".{name.rpartition('.')[2]}" in SUFFIXES]
    if not pictures:
        return
    called = f"{'/'.join(filter(None, key))} of {Path(path).name}"
    captions: list[str] = []
    for suffix in ("txt", "caption", "json"):
        if suffix in sample and not captions:
            text = sample[suffix].decode("utf-8", errors="replace")
            try:
                captions = _captions_of(json.loads(text)) if suffix == "json" else _lines(text)
            except (ValueError, AttributeError):
                continue
    yield sample[pictures[0]], captions, called


def _archive_paths(pattern: str) -> list[str]:
    """`a-{000..009}.tar`, `*.tar` or a plain path; sorted.

    Raises:
        ValueError: there is none.
    """
    names = [str(Path(pattern).expanduser())]
    if found := re.search(r"\{(\d+)\.\.(\d+)\}", names[0]):
        first, last = found.groups()
        names = [
            names[0].replace(found[0], str(number).zfill(len(first)))
            for number in range(int(first), int(last) + 1)
        ]
    paths = [path for name in names for path in sorted(glob.glob(name)) or [name]]
    missing = [path for path in paths if not Path(path).is_file()]
    if missing:
        raise ValueError(f"the archive {missing[0]} of data.path={pattern!r} does not exist.")
    return paths
