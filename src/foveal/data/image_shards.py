"""Labelled pictures of webdataset archives: the class of each is in a .cls, or a .json."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from foveal.data.examples import Examples, all_of
from foveal.data.labels import as_classes
from foveal.data.shards import File, Shards, is_plain_tar, tar_files
from foveal.data.walk import LeftOut, printable


def find_shards(pattern: str, size: int, left: LeftOut) -> Examples:
    """The pictures of archives that have a class, undecoded.

    Args:
        pattern: archives, here or behind an address: "shard-{000..009}.tar".

    Raises:
        ValueError: there are none, or packed ones, or none of their pictures has a class.
    """
    files = tar_files(pattern)
    return of_shards(files, printable(pattern.rpartition("/")[2]), size, left)


def of_shards(files: Sequence[File], name: str, size: int, left: LeftOut) -> Examples:
    """The pictures of tars; see `find_shards`."""
    packed = [file for file in files if not is_plain_tar(file)]
    if packed:
        raise ValueError(
            f"{printable(packed[0])} is packed or no tar; pictures with classes are read from "
            "plain .tar archives: unpack it, or put the pictures of each class into a folder."
        )
    shards = Shards(files, "", left)
    rows = np.flatnonzero(shards.labels >= 0)
    if not len(rows):
        raise ValueError(
            f"no picture of {name} has a class; a sample has it in a .cls beside its picture, or "
            'as "label" in a .json.'
        )
    if missing := len(shards) - len(rows):
        left.add("without a class", name, missing)
    kinds, numbers = np.unique(shards.labels[rows], return_inverse=True)
    there = [shards.classes[kind] for kind in kinds]
    as_numbers = all(one.isdecimal() for one in there)
    values = np.array([int(one) for one in there]) if as_numbers else np.array(there)
    labels, classes, named = as_classes(values[numbers], name)
    return all_of(
        name,
        labels,
        classes,
        lambda index: shards.decode(rows[index], size),
        named=named,
        pictures=lambda index: shards.decode(rows[index], size),
    )
