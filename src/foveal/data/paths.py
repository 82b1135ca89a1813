"""Paths of data that mean the same from any folder."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any, TypeVar

Config = TypeVar("Config")

EMBEDDED = ("", "stdlib", "emoji", "listops")
"""Names of data that need no path, and of none."""

_FIELDS = ("path", "valid")


def absolute(path: str) -> str:
    """A file, a folder, a glob or a range of archives from the root on; names stay as they are.

    Also of a folder within a name: hf:imagefolder:FOLDER.
    """
    if path in EMBEDDED:
        return path
    if path.startswith(("hf:", "hf-stream:")):
        kind, _, rest = path.partition(":")
        name, _, folder = rest.partition(":")
        return f"{kind}:{name}:{absolute(folder)}" if folder else path
    given = os.path.expanduser(path)
    # a link may lie before "..", so such a path is left as it is written
    return (
        os.path.join(os.getcwd(), given) if ".." in Path(given).parts else os.path.abspath(given)
    )


def with_absolute_paths(config: Config) -> Config:
    """A configuration of data that can be opened from any folder."""
    data: Any = config
    changes = {name: absolute(getattr(data, name)) for name in _FIELDS if hasattr(data, name)}
    changed: Config = dataclasses.replace(data, **changes)
    return changed
