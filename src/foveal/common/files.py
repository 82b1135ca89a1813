"""Writing files so that a crash leaves the old one or the new one, never half of either."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from foveal.common.locks import is_alive

_ATTEMPTS = 3
_LARGEST_TEXT = 64 << 20


def write_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Replace a file in one step by what `write` puts at the path that it is given.

    Everything reaches the disk before the file gets its name; nothing is left behind on an error.
    """
    partial = partial_path(path)
    try:
        for left in reversed(range(_ATTEMPTS)):
            try:
                with _told_of(path):
                    write(partial)
                    sync(partial)
                os.replace(partial, path)
                break
            except FileNotFoundError:
                # on another machine somebody may take it for a leftover, see `remove_partials`
                if not left or not path.parent.is_dir():
                    raise
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    sync(path.parent)


@contextlib.contextmanager
def _told_of(path: Path) -> Iterator[None]:
    """A disk that is full says so of no file: the error gets the name of what was written."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def write_text(path: Path, text: str) -> None:
    """Replace a text file in one step."""
    write_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_folder(path: Path, write: Callable[[Path], Any]) -> None:
    """Create the folder `path` in one step, with what `write` puts into the folder it is given.

    Everything reaches the disk before the folder gets its name; a folder of that name is replaced
    then. The folder above must exist.
    """
    partial = begin_folder(path)
    try:
        with _told_of(path):
            write(partial)
            finish_folder(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def begin_folder(path: Path) -> Path:
    """An empty folder beside `path`, to be filled, perhaps by many, and then finished."""
    partial = partial_path(path)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    return partial


def finish_folder(partial: Path, path: Path) -> None:
    """Give a folder from `begin_folder` its name, once everything in it is on the disk."""
    for file in partial.rglob("*"):
        sync(file)
    sync(partial)
    remove_folder(path)
    os.replace(partial, path)
    sync(path.parent)


def remove_folder(path: Path) -> None:
    """Take a folder away in one step: whoever looks sees the whole of it or nothing."""
    aside = partial_path(path.with_name(f"{path.name}.old"))
    with contextlib.suppress(FileNotFoundError):
        os.replace(path, aside)
    shutil.rmtree(aside, ignore_errors=True)


def expanded(path: str | Path) -> Path:
    """The path from the home that a leading ~ or ~user means.

    Raises:
        ValueError: it is the home of somebody whom nobody knows here.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(
            f"{str(path)!r} begins with the home of a user whom this machine does not know; name "
            "the folder itself."
        ) from None


def partial_path(path: Path) -> Path:
    """Where something is written before it gets its name; no other thread or process uses it."""
    return path.with_name(f".{path.name}.{os.getpid()}-{threading.get_native_id()}.partial")


def remove_partials(folder: Path, shared: bool = True) -> None:
    """Delete what killed processes left behind half-written; for the owner of a folder alone.

    Args:
        shared: others write there too, so what belongs to a living process of this machine stays.
    """
    for leftover in folder.glob(".*.partial"):
        if shared and _is_being_written(leftover):
            continue
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                leftover.unlink(missing_ok=True)


def _is_being_written(partial: Path) -> bool:
    named = re.search(r"\.(\d{1,18})-(\d{1,18})\.partial$", partial.name)
    if not named:
        return False
    process, thread = map(int, named.groups())
    if process != os.getpid():
        return is_alive(process)
    # a process in a container often has the number of its predecessor, and is not writing now
    others = {t.native_id for t in threading.enumerate()} - {threading.get_native_id()}
    return thread in others


def read_text(path: Path, largest: int = _LARGEST_TEXT) -> str:
    """The text of a small file, in UTF-8 with or without a byte order mark.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no ordinary file, not UTF-8, or larger than `largest` bytes.
        OSError: it cannot be read.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):  # opening a FIFO would wait for ever
        what = "a folder" if stat.S_ISDIR(found.st_mode) else "no ordinary file"
        raise ValueError(f"{path} must be a file, but it is {what}.")
    if found.st_size > largest:
        raise ValueError(
            f"{path} has {found.st_size:,} bytes, and a file of its kind at most {largest:,}; "
            "is it the right one?"
        )
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text (byte {error.start:,} is 0x{raw[error.start]:02x}); "
            "save it as UTF-8."
        ) from None


def read_json(path: Path, largest: int = _LARGEST_TEXT) -> Any:
    """The contents of a JSON file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not JSON.
        OSError: it cannot be read.
    """
    text = read_text(path, largest)
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(f"{path} is not valid JSON: it is nested too deeply.") from None
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from None


def sync(path: Path) -> None:
    """Make the operating system write a file, or the names in a folder, to the disk."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open folders, and needs no such call
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
