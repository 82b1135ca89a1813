"""Pictures with their captions, as folders and archives hold them, before they are decoded."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from foveal.data.archives import members
from foveal.data.pictures import SUFFIXES
from foveal.data.tables import BadRowError, Row, json_row, read_rows, text_of
from foveal.data.text_files import decode_text, lines, read_text, unpacked_name
from foveal.data.walk import LeftOut, printable, walk

_TABLE_NAMES = ("metadata", "captions")
_TABLE_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
_FILE_KEYS = ("file_name", "filename", "file", "image", "image_path", "path")
_CAPTION_KEYS = ("text", "caption", "captions")
_TEXTS = (".txt", ".caption")
KINDS = (*SUFFIXES, *_TEXTS, ".json")
"""Suffixes of the members of archives that are pictures or captions."""


@dataclass(frozen=True)
class Entry:
    """A picture that is not decoded yet.

    Attributes:
        source: its path, or the bytes of the file.
        captions: at least one.
        called: what to call it in messages.
    """

    source: str | bytes
    captions: list[str]
    called: str


def captions_in(text: str) -> list[str]:
    """The captions in a text: one a line."""
    return [line.strip() for line in lines(text) if line.strip()]


def is_caption_table(path: Path) -> bool:
    """Whether a file lists captions of many pictures: metadata.jsonl, captions.csv, ..."""
    inner = unpacked_name(path)
    return inner.stem.lower() in _TABLE_NAMES and inner.suffix.lower() in _TABLE_SUFFIXES


# -- folders --------------------------------------------------------------------------------------


def folder_entries(root: Path, column: str, left: LeftOut) -> list[Entry]:
    """Every picture below a folder that has captions, in a table or in a .txt beside it.

    What is no picture and no caption is counted; so is a picture without a caption.
    """
    listed: dict[Path, list[str]] = {}
    pictures: list[Path] = []
    tables: list[Path] = []
    texts: dict[Path, Path] = {}
    for path in walk(root, left):
        if is_caption_table(path):
            tables.append(path)
        elif path.suffix.lower() in SUFFIXES:
            pictures.append(path)
        elif path.suffix.lower() in _TEXTS:
            texts.setdefault(path.with_suffix(""), path)
        else:
            left.add_file(path)
    names = {_composed(path): path for path in pictures}
    for table in tables:
        for path, captions in _read_table(table, root, column, left).items():
            listed.setdefault(names.get(_composed(path), path), []).extend(captions)
    found = []
    for path in sorted({*pictures, *listed}):
        # beside photo.jpg lies photo.txt, or photo.jpg.txt
        beside = texts.pop(path.with_suffix(""), None) or texts.pop(path, None)
        told = listed[path] if path in listed else _captions_beside(beside, left)
        if told:
            found.append(Entry(str(path), told, printable(path)))
        elif told is not None:
            left.problems.append(f"{printable(path)} has no caption.")
    for path in texts.values():
        left.add("text without a picture", path.name)
    return found


def _captions_beside(path: Path | None, left: LeftOut) -> list[str] | None:
    """The captions in a .txt; None where it cannot be read, which is told."""
    if path is None:
        return []
    try:
        return captions_in(read_text(path))
    except ValueError as error:
        left.problems.append(str(error))
        return None


def table_entries(tables: Sequence[Path], root: Path, column: str, left: LeftOut) -> list[Entry]:
    """The pictures that tables list, which lie below a folder."""
    listed: dict[Path, list[str]] = {}
    for table in tables:
        for path, captions in _read_table(table, root, column, left).items():
            listed.setdefault(path, []).extend(captions)
    for path in [path for path, captions in listed.items() if not captions]:
        left.problems.append(f"{printable(path)} has no caption.")
        del listed[path]
    return [Entry(str(path), listed[path], printable(path)) for path in sorted(listed)]


def _composed(path: Path) -> str:
    """A path with its letters composed: systems store accents apart or not."""
    return unicodedata.normalize("NFC", str(path))


def _read_table(table: Path, root: Path, column: str, left: LeftOut) -> dict[Path, list[str]]:
    """The captions that a table lists by picture; bad rows are told in `left`.

    Raises:
        ValueError: no readable table, or it has no column of pictures or of captions.
    """
    inside = root.resolve()
    listed: dict[Path, list[str]] = {}
    good = bad = 0
    keys: list[str] = []
    for called, row in read_rows(table, (column,) if column else ()):
        try:
            if isinstance(row, BadRowError):
                raise row
            keys = list(row)
            path = _file_of(row, table.parent, inside, called)
            captions = captions_of(row, column, called)
        except BadRowError as error:
            bad += 1
            left.problems.append(str(error))
            continue
        good += 1
        listed.setdefault(path, []).extend(captions)
    if listed and not any(listed.values()) and not column:
        left.problems.append(
            f"the table {printable(table)} has no column text or caption, it has "
            f"{', '.join(keys)}; name it with --data.column."
        )
    if bad and not good and keys:
        raise ValueError(
            f"the table {printable(table)} must have file_name and text, it has "
            f"{', '.join(keys)}; name the columns so."
        )
    return listed


def _file_of(row: Row, home: Path, inside: Path, called: str) -> Path:
    """The picture that a row names, which must lie in the folder of the data."""
    key = next((key for key in _FILE_KEYS if row.get(key)), None)
    if key is None or not isinstance(row[key], str):
        raise BadRowError(f"{called} must name its picture by file_name.")
    name = row[key].replace("\\", "/")
    path = home / name
    absolute = name.startswith("/") or PureWindowsPath(name).drive
    if absolute or "\0" in name or not path.resolve().is_relative_to(inside):
        raise BadRowError(f"{called} names a file outside its folder: {printable(name)!r}.")
    return home / Path(*[part for part in path.relative_to(home).parts if part != "."])


def captions_of(row: Row, column: str, called: str) -> list[str]:
    """The captions in a row: a text with one a line, or a list of texts."""
    for key in (column,) if column else _CAPTION_KEYS:
        value = row.get(key)
        if isinstance(value, list | tuple):
            texts = [text_of({key: one}, key, called).strip() for one in value]
            return [" ".join(lines(text)) for text in texts if text]
        if text := text_of(row, key, called):
            return captions_in(text)
    return []


# -- archives -------------------------------------------------------------------------------------


def archive_entries(paths: list[Path], column: str, left: LeftOut) -> Iterator[Entry]:
    """Samples of webdataset archives: members that share their path up to the first dot."""
    for path in paths:
        samples: dict[str, dict[str, bytes]] = {}
        for name, read in members(path, left):
            key, suffix = sample_of(name)
            if kind_of(suffix) in KINDS:
                if (raw := read()) is not None:
                    samples.setdefault(key, {})[suffix] = raw
            else:
                left.add_file(Path(printable(name.rpartition("/")[2])))
        for key, sample in samples.items():
            yield from _sample(sample, f"{printable(key)} of {printable(path.name)}", column, left)


def sample_of(name: str) -> tuple[str, str]:
    """What samples are called that share a member's path up to the first dot, and the rest."""
    folder, slash, last = name.rpartition("/")
    stem, _, suffix = last.partition(".")
    return folder + slash + stem, suffix.lower()


def kind_of(suffix: str) -> str:
    """The suffix that says what a member is: ".png" of "mask.png"."""
    return f".{suffix.rpartition('.')[2]}"


def picture_of(suffixes: Iterable[str], called: str, left: LeftOut) -> str | None:
    """Which member of a sample is its picture; others are counted, and so is a sample without."""
    pictures = [name for name in suffixes if kind_of(name) in SUFFIXES]
    pictures.sort(key=lambda name: name.count("."))  # 0.png, and not 0.mask.png
    if not pictures:
        left.add("caption without a picture", called)
        return None
    for name in pictures[1:]:
        left.add("second picture of one caption", f"{called}: {name}")
    return pictures[0]


def _sample(sample: dict[str, bytes], called: str, column: str, left: LeftOut) -> Iterator[Entry]:
    picture = picture_of(sample, called, left)
    if picture is None:
        return
    try:
        captions = captions_in_sample(sample, called, column)
    except ValueError as error:
        left.problems.append(str(error))
        return
    if captions:
        yield Entry(sample[picture], captions, called)
    else:
        left.problems.append(f"{called} has no caption.")


def captions_in_sample(sample: Mapping[str, bytes], called: str, column: str) -> list[str]:
    """The captions of a sample, by suffix: in a .txt, a .caption or a .json.

    Raises:
        ValueError: what is there is no text, or no JSON.
    """
    readers: dict[str, Callable[[str], list[str]]] = {
        "json": lambda text: captions_of(_object(text, called), column, called),
        "txt": captions_in,
        "caption": captions_in,
    }
    for suffix in caption_order(column):
        if suffix in sample:
            captions = readers[suffix](decode_text(sample[suffix], f"the .{suffix} of {called}"))
            if captions:
                return captions
    return []


def caption_order(column: str) -> tuple[str, ...]:
    """The suffixes of captions, the first that has any comes first."""
    return ("json", "txt", "caption") if column else ("txt", "caption", "json")


def _object(text: str, called: str) -> dict[str, Any]:
    found = json_row(text, f"the .json of {called}")
    if isinstance(found, BadRowError):
        raise found
    return found
