"""Reading pieces of files that somebody else may change meanwhile, never to wrong bytes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from foveal.common.locks import thread_lock
from foveal.data.walk import printable

_MAX_OPEN_FILES = 512
_READS_AT = hasattr(os, "preadv")
"""Whether the system can read at a place without going there, which threads may do at once."""


@dataclass(frozen=True)
class Stamp:
    """What tells that a file is still the one that was looked at."""

    device: int
    inode: int
    size: int
    changed: int

    @classmethod
    def of(cls, found: os.stat_result) -> Stamp:
        """The stamp in what `stat` says."""
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


class FileReader:
    """An open file whose pieces are read where they lie.

    A memory map would end the process by a signal when the file shrinks; reads say so.

    Args:
        path: the file.
        stamp: what it was when its size was taken.

    Raises:
        ValueError: it has vanished or is another file by now.
    """

    def __init__(self, path: Path, stamp: Stamp) -> None:
        self.path, self.stamp = path, stamp
        self._handle = -1
        try:
            self._handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise ValueError(
                f"the data file {printable(path)} cannot be read any more: {error.strerror}."
            ) from None
        self._lock = thread_lock(self, "_lock")
        self._check()

    def read_into(self, out: np.ndarray, start: int) -> None:
        """Fill `out`, uint8 (length,), with the bytes from `start`.

        Raises:
            ValueError: the file has changed since its stamp was taken.
        """
        view = memoryview(out)  # type: ignore[arg-type]
        filled = self._read(view, start)
        while 0 < filled < len(view):
            count = self._read(view[filled:], start + filled)
            if not count:
                break
            filled += count
        self._check()
        if filled < len(view):
            raise ValueError(f"the data file {printable(self.path)} ended early while being read.")

    def _read(self, view: memoryview, start: int) -> int:
        if _READS_AT:
            return os.preadv(self._handle, [view], start)
        with self._lock:  # no reads at a place on this system: go there, and read
            os.lseek(self._handle, start, os.SEEK_SET)
            piece = os.read(self._handle, len(view))
        view[: len(piece)] = piece
        return len(piece)

    def _check(self) -> None:
        found, stamp = os.fstat(self._handle), self.stamp
        same = (found.st_dev, found.st_ino) == (stamp.device, stamp.inode)
        if same and found.st_size == stamp.size and found.st_mtime_ns == stamp.changed:
            return
        if not same:
            what = "was replaced by another file"
        elif found.st_size != stamp.size:
            what = f"had {stamp.size:,} bytes and has {found.st_size:,} now"
        else:
            what = "was written to"
        raise ValueError(
            f"the data file {printable(self.path)} {what} while it was in use; work on a copy "
            "that nobody changes, and resume with the same bytes or start anew."
        )

    def __del__(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)


def _may_open() -> int:
    """Files to keep open: half of what the process may."""
    try:
        from resource import RLIMIT_NOFILE, getrlimit
    except ImportError:  # not on Windows
        return _MAX_OPEN_FILES
    allowed = getrlimit(RLIMIT_NOFILE)[0]
    return min(_MAX_OPEN_FILES, max(16, allowed // 2)) if allowed > 0 else _MAX_OPEN_FILES


class OpenFiles:
    """Files of which pieces are read; there may be more than a process may open.

    Args:
        paths: where they lie; what those of this machine are is noted now. Whatever else there is
            reads itself.
    """

    def __init__(self, paths: Iterable[Any]) -> None:
        here = {path for path in paths if isinstance(path, Path)}
        self._stamps = {path: Stamp.of(path.stat()) for path in here}
        # only the latest stay open
        self._reader = lru_cache(_may_open())(self._open)

    def stamp(self, path: Path) -> Stamp:
        """What a file of this machine was."""
        return self._stamps[path]

    def read_into(self, path: Any, out: np.ndarray, start: int) -> None:
        """Fill `out`, uint8 (length,), with the bytes of a file from `start`.

        Raises:
            ValueError: it has changed since.
        """
        reader = self._reader(path) if isinstance(path, Path) else path
        reader.read_into(out, start)

    def _open(self, path: Path) -> FileReader:
        return FileReader(path, self._stamps[path])
