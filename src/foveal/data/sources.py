"""Where bytes come from: a file, a folder, a glob, or Python's own standard library.

A source is resolved into `Span`s, pieces of files, before anything is read; the bytes themselves
are read where they lie, here or behind an address, so a corpus may be larger than memory. Packed
files, columns of tables and texts in UTF-16 are held in memory, as UTF-8.
"""

from __future__ import annotations

import glob
import os
import platform
import sysconfig
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from foveal.common.inputs import require_file
from foveal.data.corpus import Corpus, Span
from foveal.data.folders import TEXTS, Parts, file_parts, folder_parts, part_of
from foveal.data.hub_streams import open_streamed_texts
from foveal.data.hub_texts import hub_texts
from foveal.data.image_hub import HUB, STREAM
from foveal.data.remote import RemoteFile, find_remote, is_remote
from foveal.data.sampling import ALL
from foveal.data.tables import TABLES, BadRowError, is_table, read_rows, text_of
from foveal.data.text_files import decode_text, is_packed, mark_of, read_bytes, unpacked_name
from foveal.data.text_kinds import LOOKED_AT, head_of, keep_texts, looks_binary, why_no_text
from foveal.data.walk import LeftOut, data_path, is_file, is_hidden, printable, walk

STANDARD_LIBRARY = "stdlib"
"""The name under which the embedded default corpus is asked for."""

HOLD_OUT_EVERY = 20
"""Every 20th file, counted from the first, is kept for validation."""

_SKIPPED = {
    *("site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"),
    *("encodings", "turtledemo", "__pycache__"),
}

_SURELY_TEXT = (".txt", ".text", ".md", ".rst", ".tex", ".html", ".xml", ".json", ".py")


@dataclass
class TextParts:
    """A source resolved: its pieces by part, each None where the source has no such part.

    Attributes:
        name: the source, printable.
        train: everything where there are no parts.
    """

    name: str
    train: list[Span]
    valid: list[Span] | None = None
    test: list[Span] | None = None

    @property
    def has_parts(self) -> bool:
        """Whether the source brings something to score on."""
        return bool(self.valid or self.test)

    def pair(self) -> tuple[Corpus, Corpus]:
        """To train on, and to score on meanwhile: the source's own parts, else a split."""
        if not self.has_parts:
            return _split(self.name, self.train)
        held_out, what = (self.valid, "validation") if self.valid else (self.test, "test")
        return (
            Corpus(f"{self.name}, training part", self.train),
            Corpus(f"{self.name}, {what} part", held_out or []),
        )

    def scored(self) -> Corpus:
        """The test part, else the validation part, else all of it."""
        if self.test:
            return Corpus(f"{self.name}, test part", self.test)
        if self.valid:
            return Corpus(f"{self.name}, validation part", self.valid)
        if not self.train:
            raise ValueError(f"{self.name} has no part to score on; name other data.")
        return Corpus(f"{self.name}{ALL}", self.train)


def open_corpus(
    path: str = STANDARD_LIBRARY, valid: str = "", column: str = ""
) -> tuple[Corpus, Corpus]:
    """The training and the validation part of a source.

    Args:
        path: "stdlib", or a file, a folder (all texts below it, hidden ones left out), or a glob,
            of this machine or as an address ("s3://bucket/texts"), which is read in ranges; or
            "hf:NAME", a data set of Hugging Face `datasets`.
            Folders or files named train and valid or test are the parts. Otherwise, with 20
            files or more every 20th is held out; with fewer, the last tenth of each.
        valid: another source that is held out; then all else of `path` is trained on.
        column: the column of tables (.csv, .tsv, .jsonl, .json, .parquet) that holds the text.

    Raises:
        ValueError: nothing is there, or what is there is empty, or no text.
    """
    parts = find_text(path, column)
    if not valid:
        return parts.pair()
    other = find_text(valid, column)
    held_out = other.pair()[1] if valid == STANDARD_LIBRARY else other.scored()
    # held-out files may lie in the folder of the others
    taken = {_identity(span) for span in held_out.spans}
    kept = [span for span in parts.train if _identity(span) not in taken]
    if not kept:
        raise ValueError(
            f"data.valid={valid!r} holds out all that data.path={path!r} names; name other data."
        )
    return Corpus(f"{parts.name}, training part", kept), held_out


def _identity(span: Span) -> str:
    return os.path.realpath(span.path) if isinstance(span.path, Path) else str(span.path)


def corpus_to_score(
    path: str, valid: str = "", column: str = "", data: str | None = None
) -> Corpus:
    """What a run is scored on: its own test part, else what it held out, or all of other data.

    Args:
        path, valid, column: as in `open_corpus`.
        data: another source: its test part, else its validation part, else all of it.
    """
    if data is not None and data != STANDARD_LIBRARY:
        return find_text(data, column).scored()
    own = find_text(path if data is None else data, column)
    if own.test:
        return own.scored()
    return open_corpus(path, valid, column)[1] if valid and data is None else own.pair()[1]


def find_text(path: str, column: str = "") -> TextParts:
    """Resolve a source; what it holds besides texts is counted in one warning.

    Raises:
        ValueError: nothing is there, or what is there is empty, or no text.
    """
    left = LeftOut()
    if path == STANDARD_LIBRARY:
        files = standard_library_files()
        spans = [Span(file, 0, file.stat().st_size) for file in files]
        return TextParts("Python " + platform.python_version(), spans)
    if path.startswith(STREAM):  # only the beginnings that are scored have an end
        return TextParts(path, [], **open_streamed_texts(path, column)[1])
    if path.startswith(HUB):
        parts = TextParts(path, **hub_texts(path, column))
    elif is_remote(path):
        parts = _find_far(path, column, left)
    elif (target := data_path(path)).is_dir():
        parts = _find_parts(target, path, column, left)
    else:
        files = find_files(path)
        alone = len(files) == 1 and not glob.has_magic(path)
        spans = [_named(files[0], column)] if alone else _spans(files, column, left)
        parts = TextParts(printable(path), spans)
    for part in (parts.train, parts.valid, parts.test):
        if part is not None and not sum(map(len, part)):
            _refuse_empty(path, part, left, column)
    left.warn(path)
    return parts


def standard_library_files() -> list[Path]:
    """The sources of Python's standard library, without its tests and tables, in sorted order."""
    root = sysconfig.get_paths()["stdlib"]
    kept = []
    for folder, below, names in os.walk(root):  # site-packages, not entered, may hold thousands
        below[:] = [name for name in below if name not in _SKIPPED]
        kept += [Path(folder, name) for name in names if name.endswith(".py")]
    if not kept:
        raise ValueError(
            f"this Python has no standard library sources (stdlib={root!r}); "
            "name a text with --data PATH."
        )
    return sorted(kept)


def find_files(path: str) -> list[Path]:
    """The file that a path stands for, or the files that match a glob, sorted.

    Raises:
        ValueError: the path does not exist or is no file, or no file matches the glob.
    """
    target = data_path(path)
    if glob.has_magic(path) and not target.exists():
        found = sorted(map(Path, glob.glob(str(target), recursive=True)))
        hidden = target.name.startswith(".")
        real = {  # a link upwards shows the same files again and again
            file.resolve(): file
            for file in reversed(found)
            if is_file(file, LeftOut()) and (hidden or not is_hidden(file.name))
        }
        if not real:
            raise ValueError(
                f"no file matches the pattern path={path!r}; "
                "quote it so that the shell leaves it alone, and use ** to reach into subfolders."
            )
        return sorted(real.values())
    if not target.exists():
        raise ValueError(
            f"the data must exist, got path={path!r}; "
            "name a file, a folder, a glob, or stdlib for the embedded text."
        )
    require_file(target, "the data")
    return [target]


def _find_parts(root: Path, path: str, column: str, left: LeftOut) -> TextParts:
    """The parts of a folder, by its folders or its files; all of it where there are none."""
    folders = folder_parts(root)
    if folders is not None and (folders.valid or folders.test):
        folders.count_others(left)
        files = {part: walk(homes[0], left) for part, homes in folders.items()}
    else:
        below = walk(root, left)
        if not below:
            raise ValueError(
                f"the data folder has no files, got path={path!r}"
                + (f"; left out: {left.kinds()}." if left else ".")
            )
        found = file_parts(f for f in below if f.parent == root and _may_be_part(f, column))
        files = {"train": below} if found is None else _chosen(found, below, left)
    spans = {part: _spans(paths, column, left) for part, paths in files.items() if paths}
    return TextParts(
        printable(path), spans.get("train", []), spans.get("valid"), spans.get("test")
    )


def _find_far(url: str, column: str, left: LeftOut) -> TextParts:
    """Texts behind an address, by the folders or the files that are parts.

    Raises:
        ValueError: there are none, or some that cannot be read in ranges.
    """
    if column:
        raise ValueError(
            f"column={column!r} is for tables on this machine, but the data are {url!r}; copy "
            "them here, or read them by hf-stream:parquet:, hf-stream:json: or hf-stream:csv:."
        )
    files, folder = find_remote(url)
    if len(files) == 1 and not folder:
        return TextParts(url, [_far_span(files[0])])
    parts: dict[str, list[Span]] = {}
    for file, home in _homes(files, folder).items():
        if home is None:
            left.add("file beside the parts", file.path.name)
            continue
        try:
            parts.setdefault(home, []).append(_far_span(file))
        except _NoTextError:
            left.add_file(Path(file.path))
    return TextParts(url, parts.get("train", []), parts.get("valid"), parts.get("test"))


def _homes(files: list[RemoteFile], folder: str) -> dict[RemoteFile, str | None]:
    """The part that each file is of, by folders or by names; None is beside the parts."""
    homes = {file: _home(file, folder) for file in files}
    if {"train"} < {part for part in homes.values() if part}:
        return homes
    named: dict[Any, RemoteFile] = {file.path: file for file in files}
    found = file_parts(named) if folder else None
    if not found:
        return {file: home or "train" for file, home in homes.items()}
    for part, paths in found.items():
        homes |= {named[path]: part for path in paths}
    return homes


def _home(file: RemoteFile, folder: str) -> str | None:
    """The part that the first folder of a file's path below `folder` is, if any."""
    if not folder or not file.url.startswith(f"{folder}/"):
        return None
    first, slash, _ = file.url.removeprefix(f"{folder}/").partition("/")
    return part_of(first) if slash else None


class _NoTextError(ValueError):
    """A file behind an address that cannot be read as text in ranges."""


def _far_span(file: RemoteFile) -> Span:
    """All of a file but its byte order mark."""
    path = Path(file.path)
    if is_packed(path) or is_table(path):
        what = "packed" if is_packed(path) else "a table"
        raise _NoTextError(f"{file} is {what}, and cannot be read in ranges; copy it here.")
    head = head_of(file) if file.size else b""
    mark, encoding = mark_of(head)
    kind = why_no_text(path, head) or (f"in {encoding.upper()}" if encoding != "utf-8" else "")
    if kind:
        raise _NoTextError(f"{file} is {kind} and no text in UTF-8, which ranges can be read of.")
    if path.suffix.lower() in _SURELY_TEXT and looks_binary(head):
        raise _NoTextError(f"{file} has NUL bytes: it is no text.")
    return Span(file, mark, file.size)


def _chosen(found: Parts, below: list[Path], left: LeftOut) -> dict[str, list[Path]]:
    """Files that are parts; what else there is is counted."""
    files = {part: list(paths) for part, paths in found.items()}
    used = {path for paths in files.values() for path in paths}
    for path in below:
        if path not in used:
            left.add("file beside the parts", path.name)
    return files


def _may_be_part(path: Path, column: str) -> bool:
    if column:
        return is_table(path, json_too=True)
    return unpacked_name(path).suffix.lower() in ("", *TEXTS)


def _spans(files: list[Path], column: str, left: LeftOut) -> list[Span]:
    """The texts among files of a folder; what is no text is counted."""
    spans = []
    for path in keep_texts(files, left, tables=bool(column)):
        span = _span(path, column)
        if span.held is not None and (
            why_no_text(path, span.held[:LOOKED_AT]) or looks_binary(span.held)
        ):
            left.add_file(path)
        else:
            spans.append(span)
    return spans


def _named(path: Path, column: str) -> Span:
    """The text in a file that was asked for by its name.

    Raises:
        ValueError: it is no text.
    """
    name = printable(path)
    if column and not is_table(path, json_too=True):
        raise ValueError(
            f"column={column!r} is for tables ({', '.join(TABLES)}), but the data are {name}."
        )
    if not column and is_table(path):
        raise ValueError(
            f"{name} is a table; name the column of its texts with --data.column, or rename it "
            "to .txt to read it as it lies."
        )
    span = Span(path, 0, 0) if column else _span(path, column)
    head = b"" if column else head_of(path) if span.held is None else span.held[:LOOKED_AT]
    if not column and (kind := why_no_text(path, head)):
        raise ValueError(f"{name} is {kind} and no text; unpack it, or name a text.")
    if path.suffix.lower() in _SURELY_TEXT and looks_binary(head):
        raise ValueError(
            f"{name} has NUL bytes: it is no text, or UTF-16 without a byte order mark; convert "
            "it to UTF-8, or rename it to .bin to read it as it lies."
        )
    return _span(path, column) if column else span


def _span(path: Path, column: str) -> Span:
    """A file, or what it holds where that has to be unpacked, decoded or picked from a table."""
    if column:
        texts = _column(path, column)
        return Span(path, 0, len(texts), texts)
    held = read_bytes(path) if is_packed(path) else None
    mark, encoding = mark_of(head_of(path) if held is None else held)
    if encoding != "utf-8":
        held, mark = decode_text(held or read_bytes(path), printable(path)).encode(), 0
    return Span(path, mark, path.stat().st_size if held is None else len(held), held)


def _column(path: Path, column: str) -> bytes:
    """The texts of a column, a newline behind each."""
    texts = []
    for called, row in read_rows(path, (column,)):
        if isinstance(row, BadRowError):
            raise row
        if text := text_of(row, column, called):
            texts.append(f"{text}\n".encode())
    return b"".join(texts)


def _refuse_empty(path: str, spans: list[Span], left: LeftOut, column: str) -> None:
    if spans:
        what = "file is" if len(spans) == 1 else f"{len(spans)} files are all"
        where = repr(str(spans[0].path)) if len(spans) == 1 else repr(path)
        if column:
            what = f"column {column!r} of the {what}"
        raise ValueError(f"the data must not be empty, but the {what} empty: path={where}.")
    what = f"table with the column {column!r}" if column else "text"
    hint = "" if column else " (tables need --data.column)"
    raise ValueError(f"path={path!r} holds no {what}{hint}; left out: {left.kinds()}.")


def _split(name: str, whole: list[Span]) -> tuple[Corpus, Corpus]:
    """Hold out every 20th file, or the tail of each where there are fewer than 20."""
    if len(whole) >= HOLD_OUT_EVERY:
        valid = whole[::HOLD_OUT_EVERY]
        train = [span for index, span in enumerate(whole) if index % HOLD_OUT_EVERY]
    else:
        cuts = [span.stop - len(span) // 10 for span in whole]
        train = [replace(span, stop=cut) for span, cut in zip(whole, cuts, strict=True)]
        valid = [replace(span, start=cut) for span, cut in zip(whole, cuts, strict=True)]
    return Corpus(f"{name}, training part", train), Corpus(f"{name}, held-out part", valid)
