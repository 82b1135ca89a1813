"""Files by class: a folder for each, with or without training, validation and test parts above."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from foveal.data.examples import ExampleParts, Examples, all_of, in_parts, of_parts
from foveal.data.folders import folder_parts
from foveal.data.images import Decoded, collect
from foveal.data.pictures import SUFFIXES
from foveal.data.walk import LeftOut, is_hidden, printable, subfolders, walk


def find_pictures(root: Path, size: int, left: LeftOut) -> ExampleParts:
    """The class folders of root, or of its folders train, valid and test.

    Raises:
        ValueError: there are no class folders, or no pictures in them.
    """

    def read(homes: tuple[Path, ...], name: str) -> Examples:
        (home,) = homes
        files, labels, classes = by_class(home, left, keep_pictures, "pictures")
        loose = [path for path in home.iterdir() if path.is_file() and not is_hidden(path.name)]
        for path in keep_pictures(sorted(loose), left):
            left.add(f"picture without a class in {printable(home.name)}", path.name)

        def load(index: np.ndarray) -> Decoded:
            jobs = ((str(files[i]), size, printable(files[i])) for i in index)
            return collect(jobs, len(index), size)

        return all_of(name, labels, classes, load, files=[str(path) for path in files])

    parts = folder_parts(root)
    home = root if parts is None else parts.train[0]
    if not subfolders(home):
        raise ValueError(
            f"{printable(home)} has no class folders; put the pictures of each class into their "
            "own folder."
        )
    if parts is None:
        found = {"train": read((root,), printable(root.name))}
    else:
        found = of_parts(parts, root, left, read)
    if not len(found["train"]):
        raise ValueError(f"the class folders of {printable(home)} hold no pictures.")
    return in_parts(found, left)


def by_class(
    root: Path,
    left: LeftOut,
    keep: Callable[[list[Path], LeftOut], list[Path]],
    things: str,
    skip: Callable[[Path], bool] = lambda folder: False,
) -> tuple[list[Path], np.ndarray, list[str]]:
    """Files by class folder: their paths, labels int64 (n,), and the names of the classes.

    Args:
        keep: (files, left) -> those that are of the kind; it counts the others.
        things: what they are called.
        skip: whether a folder is no class.
    """
    files: list[Path] = []
    labels: list[int] = []
    classes: list[str] = []
    for folder in subfolders(root):
        mine = keep(walk(folder, left), left)
        if skip(folder):
            left.add(f"without a class in {printable(folder.name)}", folder.name, len(mine))
        elif not mine:
            left.add(f"class folder without {things}", folder.name)
        else:
            files += mine
            labels += [len(classes)] * len(mine)
            classes.append(printable(folder.name))
    return files, np.array(labels, np.int64), classes


def keep_pictures(paths: list[Path], left: LeftOut) -> list[Path]:
    """Those with the suffix of a picture; the others are counted."""
    for path in paths:
        if path.suffix.lower() not in SUFFIXES:
            left.add_file(path)
    return [path for path in paths if path.suffix.lower() in SUFFIXES]
