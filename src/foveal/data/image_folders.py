"""Pictures in class folders, with or without parts above them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from foveal.data.examples import ExampleParts, Examples, all_of, in_parts
from foveal.data.folders import SPELLINGS, folder_parts
from foveal.data.image_examples import Decoded, collect
from foveal.data.left_out import LeftOut, printable
from foveal.data.pictures import SUFFIXES
from foveal.data.walk import is_hidden, subfolders, walk


def find_folder(root: Path, size: int, left: LeftOut) -> ExampleParts:
    """The class folders of root, or of its folders train, valid and test.

    Raises:
        ValueError: there are no class folders, or no pictures in them.
    """
    found = folder_parts(root)
    if found is None:
        return ExampleParts(_training(root, size, left, printable(root.name)))
    for other in found.others:
        left.add("folder beside the parts", other.name)
    (home,) = found.train
    name = printable(root.name)
    parts = {"train": _training(home, size, left, f"{name}, {printable(home.name)}")}
    for part in list(SPELLINGS)[1:]:
        for folder in getattr(found, part):
            parts[part] = _read(folder, size, left, f"{name}, {printable(folder.name)}")
    return in_parts(parts, left)


def _training(root: Path, size: int, left: LeftOut, name: str) -> Examples:
    if not subfolders(root):
        raise ValueError(
            f"{printable(root)} has no class folders; put the pictures of each class into their "
            "own folder."
        )
    found = _read(root, size, left, name)
    if not len(found):
        raise ValueError(f"the class folders of {printable(root)} hold no pictures.")
    return found


def _read(root: Path, size: int, left: LeftOut, name: str) -> Examples:
    """Pictures by class folder; those that lie in none have no class."""
    files: list[str] = []
    labels: list[int] = []
    classes: list[str] = []
    for folder in subfolders(root):
        mine = [str(path) for path in _pictures(walk(folder, left), left)]
        if not mine:
            left.add("class folder without pictures", folder.name)
            continue
        files += mine
        labels += [len(classes)] * len(mine)
        classes.append(printable(folder.name))
    loose = [path for path in root.iterdir() if path.is_file() and not is_hidden(path.name)]
    for path in _pictures(sorted(loose), left):
        left.add(f"picture without a class in {printable(root.name)}", path.name)

    def load(index: np.ndarray) -> Decoded:
        jobs = ((files[i], size, printable(files[i])) for i in index)
        return collect(jobs, len(index), size)

    return all_of(name, np.array(labels, np.int64), classes, load, files=files)


def _pictures(paths: list[Path], left: LeftOut) -> list[Path]:
    """Those with the suffix of a picture; the others are counted."""
    for path in paths:
        if path.suffix.lower() not in SUFFIXES:
            left.add_file(path)
    return [path for path in paths if path.suffix.lower() in SUFFIXES]
