"""Where bytes come from: a file, a folder, a glob, or Python's own standard library.

A source is resolved into `Span`s, pieces of files, before anything is read; the bytes themselves
are memory-mapped, so a corpus may be larger than memory.
"""

from __future__ import annotations

import glob
import hashlib
import platform
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

STANDARD_LIBRARY = "stdlib"
"""The name under which the embedded default corpus is asked for."""

HOLD_OUT_EVERY = 20
"""Every 20th file, counted from the first, is kept for validation."""

_SKIPPED = {
    *("site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"),
    *("encodings", "turtledemo", "__pycache__"),
}
_MAX_OPEN_MAPS = 512


@dataclass(frozen=True)
class Span:
    """The bytes `start <= position < stop` of one file."""

    path: Path
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


class Corpus:
    """Spans of files read as one long array of bytes, without loading them.

    Attributes:
        name: what to call the corpus in reports.
        spans: the pieces, in order; none is empty.
    """

    def __init__(self, name: str, spans: Sequence[Span]) -> None:
        self.name = name
        self.spans = tuple(span for span in spans if len(span))
        # _starts[i] is the position of span i in the whole; the last entry is the length
        self._starts = np.cumsum([0, *map(len, self.spans)])
        # a folder may hold more files than a process may map, so only the latest stay open
        self._map = lru_cache(_MAX_OPEN_MAPS)(_map_file)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, start: int, length: int) -> np.ndarray:
        """`length` bytes from position `start`, as a new uint8 array of shape (length,)."""
        if start < 0 or length < 0 or start + length > len(self):
            raise ValueError(
                f"the window must lie inside the {len(self)} bytes of {self.name}, "
                f"got {start=}, {length=}."
            )
        out = np.empty(length, dtype=np.uint8)
        filled = 0
        index = int(np.searchsorted(self._starts, start, side="right")) - 1
        while filled < length:
            span = self.spans[index]
            offset = start + filled - int(self._starts[index])
            piece = min(length - filled, len(span) - offset)
            begin = span.start + offset
            out[filled : filled + piece] = self._map(span.path)[begin : begin + piece]
            filled, index = filled + piece, index + 1
        return out

    def checksum(self) -> str:
        """The first 12 hex digits of the SHA-256 of all bytes: names the data beside a score."""
        digest = hashlib.sha256()
        for start in range(0, len(self), 1 << 20):
            digest.update(self.read(start, min(1 << 20, len(self) - start)).tobytes())
        return digest.hexdigest()[:12]


def open_corpus(path: str = STANDARD_LIBRARY) -> tuple[Corpus, Corpus]:
    """The training and the validation part of a source.

    Args:
        path: "stdlib", or a file, a folder (all files below it, hidden ones left out), or a glob.
            With 20 files or more every 20th is held out; with fewer, the last tenth of each.

    Raises:
        ValueError: nothing is there, or what is there is empty.
    """
    if path == STANDARD_LIBRARY:
        return _split("Python " + platform.python_version(), standard_library_files())
    return _split(path, find_files(path))


def standard_library_files() -> list[Path]:
    """The sources of Python's standard library, without its tests and tables, in sorted order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(root.rglob("*.py"))
    kept = [file for file in files if not _SKIPPED & set(file.relative_to(root).parts)]
    if not kept:
        raise ValueError(
            f"this Python has no standard library sources (stdlib={str(root)!r}); "
            "name a text with --data PATH."
        )
    return kept


def find_files(path: str) -> list[Path]:
    """The files that a path or a glob stands for, sorted.

    Raises:
        ValueError: the path does not exist, or the folder or the glob holds no file.
    """
    target = Path(path).expanduser()
    if target.is_file():
        return [target]
    if target.is_dir():
        files = sorted(file for file in target.rglob("*") if _is_visible_file(file, target))
        if not files:
            raise ValueError(f"the data folder has no files, got path={path!r}.")
        return files
    if glob.has_magic(path):
        found = sorted(map(Path, glob.glob(str(target), recursive=True)))
        files = [file for file in found if file.is_file()]
        if not files:
            raise ValueError(
                f"no file matches the pattern path={path!r}; "
                "quote it so that the shell leaves it alone, and use ** to reach into subfolders."
            )
        return files
    raise ValueError(
        f"the data must exist, got path={path!r}; "
        "name a file, a folder, a glob, or stdlib for the embedded text."
    )


def _is_visible_file(file: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
    return not hidden and file.is_file()


def _split(name: str, files: list[Path]) -> tuple[Corpus, Corpus]:
    """Hold out every 20th file, or the tail of each where there are fewer than 20."""
    whole = [Span(file, 0, file.stat().st_size) for file in files]
    if not sum(map(len, whole)):
        what = "file is" if len(files) == 1 else f"{len(files)} files are all"
        raise ValueError(f"the data must not be empty, but the {what} empty: path={name!r}.")
    if len(files) >= HOLD_OUT_EVERY:
        valid = whole[::HOLD_OUT_EVERY]
        train = [span for index, span in enumerate(whole) if index % HOLD_OUT_EVERY]
    else:
        cuts = [span.stop - span.stop // 10 for span in whole]
        train = [Span(s.path, 0, cut) for s, cut in zip(whole, cuts, strict=True)]
        valid = [Span(s.path, cut, s.stop) for s, cut in zip(whole, cuts, strict=True)]
    return Corpus(f"{name}, training part", train), Corpus(f"{name}, held-out part", valid)


def _map_file(path: Path) -> np.ndarray:
    return np.memmap(path, dtype=np.uint8, mode="r")
