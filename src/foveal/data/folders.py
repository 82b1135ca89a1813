"""How folders of examples are laid out: train and test, and a folder for each class."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

TRAIN, TEST = ("train", "training"), ("test", "val", "valid", "validation")
"""What the parts of a data set may be called."""


def split_folders(root: Path) -> tuple[Path, Path | None]:
    """Where to train and where to score: root/train and root/test, or root and nowhere."""
    train = child(root, TRAIN)
    return (root, None) if train is None else (train, child(root, TEST))


def child(root: Path, names: Iterable[str]) -> Path | None:
    """The first folder of root that has one of the names, or None."""
    return next((root / name for name in names if (root / name).is_dir()), None)


def subfolders(root: Path) -> list[str]:
    """Names of the folders in root, sorted; hidden ones left out."""
    return sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
