"""Walking through folders: what is found, and what is left out, counted by kind and told once."""

from __future__ import annotations

import os
import stat
import warnings
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

from foveal.common.inputs import require_file

_SYSTEM = {
    *("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "#recycle"),
    *("@eadir", "system volume information", "lost+found", "icon\r", "__pycache__"),
}

_SHOWN = 80


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or was put there by a system and not by a person."""
    return name.startswith(".") or name.lower() in _SYSTEM


def walk(root: Path, left: LeftOut) -> list[Path]:
    """All regular files below a folder, sorted; hidden and system ones passed over.

    Links are followed, each folder is entered once, and links upwards are no way to go. What is
    neither a file nor a folder (FIFOs, sockets, devices, broken links), or may not be read, is
    counted in `left`, never opened.
    """
    files: list[Path] = []
    real = root.resolve()
    entered = {_identity(folder) for folder in (real, *real.parents)}
    todo = [root]
    while todo:
        folder = todo.pop()
        for entry in _entries(folder, left):
            path = folder / entry.name
            if is_hidden(entry.name):
                continue
            if not _is_folder(entry):
                if is_file(path, left):
                    files.append(path)
            elif (found := _identity(path)) not in entered:
                entered.add(found)
                todo.append(path)
    return sorted(files)


def subfolders(root: Path) -> list[Path]:
    """The folders in root, sorted by name; hidden and system ones passed over."""
    names = sorted(entry.name for entry in os.scandir(root) if _is_folder(entry))
    return [root / name for name in names if not is_hidden(name)]


def is_file(path: Path, left: LeftOut) -> bool:
    """Whether a path is a regular file that may be read; counted in `left` if it is not."""
    try:
        mode = path.stat().st_mode
    except OSError:
        left.add("broken link" if path.is_symlink() else "unreadable file", path.name)
        return False
    if not stat.S_ISREG(mode):
        left.add("FIFO, socket or device", path.name)
    elif not os.access(path, os.R_OK):
        left.add("unreadable file", path.name)
    else:
        return True
    return False


def data_path(path: str) -> Path:
    """Where data lie, there or not.

    Raises:
        ValueError: nothing can lie there: an empty name, one that is too long, an unknown user's,
            the root of the system.
    """
    try:
        target = Path(path).expanduser()
        target.stat()
    except (FileNotFoundError, NotADirectoryError):
        return target
    except (OSError, ValueError, RuntimeError) as error:
        shown = path if len(path) < _SHOWN else f"{path[:_SHOWN]}..."
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(
            f"the data path {shown!r} cannot be used: {reason.rstrip('.')}."
        ) from None
    if not path:
        raise ValueError("the data path must not be empty, got ''.")
    if os.name == "posix" and _is_of_the_system(target):
        raise ValueError(
            f"the data path {path!r} is the system's own and holds no data; name their folder."
        )
    return target


def _is_of_the_system(target: Path) -> bool:
    """Whether it is the root of all, or what a kernel tells, of which some files never end."""
    real = target.resolve()
    return real == real.parent or (real.parts[1] in ("proc", "sys") and real.is_dir())


def data_folder(path: str, otherwise: str) -> Path:
    """The folder that holds data.

    Args:
        otherwise: what to name instead, where that is none.

    Raises:
        ValueError: it is not there, or no folder.
    """
    root = data_path(path)
    if root.is_dir():
        return root
    if root.exists():
        require_file(root, "the data")
    what = "is a file" if root.exists() else "does not exist"
    raise ValueError(f"data.path={path!r} {what}; name {otherwise}.")


def _entries(folder: Path, left: LeftOut) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except OSError:
        left.add("unreadable folder", folder.name)
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


_TOLD = 3


class LeftOut:
    """Counts of what was left out, and of what was wrong with single files.

    Attributes:
        problems: a sentence for each example that could not be used.
    """

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, kind: str, name: str | Path, count: int = 1) -> None:
        """Count `count` things of a kind ("*.zip", "unreadable folder"); the first is named."""
        self._counts[kind] += count
        self._first.setdefault(kind, printable(name))

    def add_file(self, path: Path) -> None:
        """Count a file by its suffix."""
        kind = f"*{path.suffix.lower()}" if path.suffix else "without a suffix"
        self.add(kind, path.name)

    def add_beside(self, root: Path, used: Collection[Path]) -> None:
        """Count what else lies in a folder; hidden and system files passed over."""
        for path in sorted(root.iterdir()):
            if path not in used and not is_hidden(path.name):
                self.add_file(path)

    def __bool__(self) -> bool:
        return bool(self._counts or self.problems)

    def kinds(self) -> str:
        """What was left out, by kind: "3 *.zip (a.zip ...), 1 broken link (x)"; "" for nothing."""
        parts = []
        for kind, count in sorted(self._counts.items(), key=lambda item: (-item[1], item[0])):
            more = " ..." if count > 1 else ""
            parts.append(f"{count:,} {kind} ({self._first[kind]}{more})")
        shown = ", ".join(parts[:8])
        return shown + (f" and {len(parts) - 8} more kinds" if len(parts) > 8 else "")

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {"problems": self.problems, "counts": self._counts, "first": self._first}

    def add_told(self, told: dict[str, Any]) -> None:
        """Count what another one counted, as its `to_dict`."""
        self.problems += told["problems"]
        for kind, count in told["counts"].items():
            self.add(kind, told["first"][kind], count)

    def warn(self, name: str, what: str = "example") -> None:
        """One warning about damaged examples, and one about kinds of files, where there are any.

        Args:
            name: the data.
            what: a word for one example.
        """
        if self.problems:
            warnings.warn(skipped_sentence(self.problems, name, what), stacklevel=3)
        if self._counts:
            warnings.warn(f"left out of {printable(name)}: {self.kinds()}.", stacklevel=3)


def skipped_sentence(problems: list[str], name: str, what: str) -> str:
    """How many examples were left out, and what was wrong with the first few."""
    shown = " ".join(problems[:_TOLD])
    more = f" ... and {len(problems) - _TOLD} more." if len(problems) > _TOLD else ""
    number = f"1 {what}" if len(problems) == 1 else f"{len(problems)} {what}s"
    return f"skipped {number} of {printable(name)}: {shown}{more}"


def printable(name: object) -> str:
    """A name as a terminal can show it: on one line, bytes that are not UTF-8 escaped."""
    text = str(name).encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
