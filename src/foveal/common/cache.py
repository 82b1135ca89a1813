"""Where things are kept that can be made again: compiled kernels, measured speeds, pictures."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path


def cache_folders(name: str) -> list[Path]:
    """Places for one kind of thing, best first; none of them needs to exist or be writable.

    The user's cache folder (FOVEAL_CACHE, else XDG_CACHE_HOME or ~/.cache, foveal/ in it), and a
    folder of this user's among the temporary files, for homes that are missing or read-only; not
    where FOVEAL_CACHE names the place. A folder that others could write into is left out: what
    lies there may be run.
    """
    named = os.environ.get("FOVEAL_CACHE")
    places = (Path(named),) if named else (_users(), _temporary())
    return [folder / name for folder in places if folder and _is_ours(folder)]


def _users() -> Path | None:
    given = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME", "")
    if os.path.isabs(given):  # the convention says to ignore a relative one
        return Path(given) / "foveal"
    try:
        return Path.home() / ".cache" / "foveal"
    except RuntimeError:  # no HOME, and no such user
        return None


def _temporary() -> Path | None:
    try:
        base = tempfile.gettempdir()
    except OSError:  # no place at all where a file can be written
        return None
    return Path(base) / f"foveal-{os.getuid() if hasattr(os, 'getuid') else 'cache'}"


def _is_ours(folder: Path) -> bool:
    """Whether nobody else can write there; a folder that is still to be made is ours."""
    try:
        found = folder.stat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    if not hasattr(os, "getuid"):
        return True
    return found.st_uid in (os.getuid(), 0) and not found.st_mode & 0o002


def make_private(folder: Path) -> None:
    """Make sure of a cache folder that only this user writes into.

    Raises:
        OSError: it cannot be made.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
