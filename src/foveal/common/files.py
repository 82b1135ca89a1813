"""Writing files so that a crash leaves the old one or the new one, never half of either."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Replace a file in one step by what `write` puts at the path that it is given.

    Everything reaches the disk before the file gets its name; nothing is left behind on an error.
    """
    partial = partial_path(path)
    try:
        write(partial)
        sync(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replace a text file in one step."""
    write_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_folder(path: Path, write: Callable[[Path], Any]) -> None:
    """Create the folder `path` in one step, with what `write` puts into the folder it is given.

    Everything reaches the disk before the folder gets its name; a folder of that name is replaced.
    """
    partial = partial_path(path)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        write(partial)
        for file in partial.rglob("*"):
            sync(file)
        sync(partial)
        if path.exists():
            shutil.rmtree(path)
        os.replace(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync(path.parent)


def partial_path(path: Path) -> Path:
    """Where something is written before it gets its name; no other thread or process uses it."""
    return path.with_name(f".{path.name}.{os.getpid()}-{threading.get_native_id()}.partial")


def remove_partials(folder: Path) -> None:
    """Delete what killed processes left behind half-written; for the owner of a folder alone."""
    for leftover in folder.glob(".*.partial"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Make the operating system write a file, or the names in a folder, to the disk."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open folders, and needs no such call
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
