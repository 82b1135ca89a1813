"""Labelled examples before they are read: split, chosen and matched to classes, then read."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foveal.data.folders import Parts
from foveal.data.sampling import ALL
from foveal.data.tables import is_table
from foveal.data.walk import LeftOut, printable

Read = tuple[Any, list[tuple[int, str]]]
"""Examples (an array or a list), and what was wrong with some, by their number in it."""


@dataclass(frozen=True)
class Examples:
    """Some examples of a source, unread.

    Attributes:
        name: what to call them in reports.
        places: which of the source's examples these are, int64 (n,).
        labels: the class of each, int64 (n,).
        classes: the name of each label.
        load: reads the source's examples at some places, int64 (m,).
        named: whether the classes have names of their own, and not just numbers.
        files: the paths of all the source's examples, where those are files of their own.
        pictures: reads the pictures alone of a few, at any time and from any thread; None where
            that would take longer than to read all at once.
        texts: what is written beside each of the source's examples, where that is known unread.
    """

    name: str
    places: np.ndarray
    labels: np.ndarray
    classes: list[str]
    load: Callable[[np.ndarray], Read]
    named: bool = True
    files: Sequence[str] = ()
    pictures: Callable[[np.ndarray], Read] | None = None
    texts: Sequence[Any] | None = None

    def __len__(self) -> int:
        return len(self.places)

    def subset(self, index: np.ndarray, name: str | None = None) -> Examples:
        """Some of them, in the order of `index`."""
        name = self.name if name is None else name
        return replace(self, name=name, places=self.places[index], labels=self.labels[index])

    def with_classes(self, classes: Sequence[str], left: LeftOut) -> Examples:
        """The same with labels that are places in `classes`; others are left out and counted."""
        wanted = list(classes)
        if self.classes == wanted:
            return self
        if self.named:
            places = _places(self.classes, wanted)
        else:
            places = np.arange(len(self.classes))
            places[len(wanted) :] = -1
        labels = places[self.labels]
        for number in np.unique(self.labels[labels < 0]):
            count = int((self.labels == number).sum())
            left.add(
                f"example of class {self.classes[number]!r}, which training lacks",
                self.name,
                count,
            )
        known = np.flatnonzero(labels >= 0)
        return replace(self.subset(known), labels=labels[known], classes=wanted)

    def without(self, other: Examples) -> Examples:
        """Those whose files are not among those of other examples, which are held out."""
        taken = {os.path.realpath(other.files[i]) for i in other.places} if other.files else set()
        if not taken or not self.files:
            return self
        index = [
            number
            for number, place in enumerate(self.places)
            if os.path.realpath(self.files[place]) not in taken
        ]
        return self if len(index) == len(self) else self.subset(np.array(index, np.int64))

    def split(self, held_out: float) -> tuple[Examples, Examples]:
        """Two parts, by a share of every class."""
        is_test = np.zeros(len(self), dtype=bool)
        for label in range(len(self.classes)):
            mine = np.flatnonzero(self.labels == label)
            count = round(len(mine) * held_out)
            count = max(count, 1) if len(mine) > 1 else 0
            is_test[mine[shuffled(len(mine))[:count]]] = True
        return self.divided(is_test)

    def in_parts(self, is_test: np.ndarray) -> ExampleParts:
        """The same as the parts of a data set."""
        train, test = self.divided(is_test)
        return ExampleParts(train, test=test if len(test) else None)

    def divided(self, is_test: np.ndarray) -> tuple[Examples, Examples]:
        """Two parts, by what the data say."""
        return (
            self.subset(np.flatnonzero(~is_test), f"{self.name}, training part"),
            self.subset(np.flatnonzero(is_test), f"{self.name}, held-out part"),
        )

    def chosen(self, limit: int) -> Examples:
        """All, or in a random order where only the first `limit` are to be read."""
        return self.subset(shuffled(len(self))) if limit else self

    def read(self, left: LeftOut, limit: int = 0) -> tuple[Examples, list[Any]]:
        """Read them; what cannot be read is told in `left`.

        Args:
            limit: choose so many at random, and read no more than it takes to have them.

        Returns:
            those that could be read, and pieces of what was read, in order.
        """
        chosen = self.chosen(limit)
        most = min(limit or len(self), len(self))
        pieces, good, have, done = [], [], 0, 0
        while have < most and done < len(self):
            numbers = np.arange(done, min(len(self), done + most - have))
            piece, bad = chosen.load(chosen.places[numbers])
            fine = np.ones(len(numbers), dtype=bool)
            fine[[number for number, _ in bad]] = False
            left.problems += [problem for _, problem in bad]
            pieces.append(piece if fine.all() else _kept(piece, fine))
            good.append(numbers[fine])
            have, done = have + int(fine.sum()), done + len(numbers)
        index = np.concatenate(good) if good else np.zeros(0, np.int64)
        return chosen.subset(index), pieces


@dataclass(frozen=True)
class ExampleParts:
    """A data set by part; labels of all parts are places in the classes of the training part.

    Attributes:
        train: everything where there are no parts.
        valid, test: None where there is no such part, or it has no labels.
    """

    train: Examples
    valid: Examples | None = None
    test: Examples | None = None

    def pair(self, held_out: float) -> tuple[Examples, Examples]:
        """To train on, and to score on meanwhile: the data's own parts, else a split."""
        own = self.valid or self.test
        return (self.train, own) if own is not None else self.train.split(held_out)

    def scored(self) -> Examples:
        """The test part, else the validation part, else all."""
        found = self.test or self.valid
        return found or replace(self.train, name=f"{self.train.name}{ALL}")


def all_of(
    name: str,
    labels: np.ndarray,
    classes: list[str],
    load: Callable[[np.ndarray], Read],
    **options: Any,
) -> Examples:
    """Every example of a source."""
    return Examples(name, np.arange(len(labels)), labels, classes, load, **options)


def of_parts(
    parts: Parts, root: Path, left: LeftOut, read: Callable[[tuple[Path, ...], str], Examples]
) -> dict[str, Examples]:
    """The examples of each part of a folder; what lies beside the parts is counted.

    Args:
        read: (the folder or the files of a part, what to call them) -> examples.
    """
    first = parts.train[0]
    kind = "table" if is_table(first, json_too=True) else "archive"
    kind = "file" if first.is_dir() else kind
    parts.count_others(left, kind)
    found = {}
    for part, paths in parts.items():
        called = printable(paths[0].name) if kind == "file" else part
        found[part] = read(paths, f"{printable(root.name)}, {called}")
    return found


def in_parts(parts: dict[str, Examples], left: LeftOut) -> ExampleParts:
    """Parts whose labels fit the training part; one that has none of its classes is no part."""
    train = parts["train"]
    fitting = {}
    for name in ("valid", "test"):
        if name in parts and len(parts[name]):
            found = parts[name].with_classes(train.classes, left)
            fitting[name] = found if len(found) else None
    return ExampleParts(train, **fitting)


def shuffled(count: int) -> np.ndarray:
    """The numbers below `count` in an order that is always the same."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0)).numpy()


def _kept(piece: Any, fine: np.ndarray) -> Any:
    if isinstance(piece, np.ndarray):
        return piece[fine]
    return [one for one, is_fine in zip(piece, fine, strict=True) if is_fine]


def _folded(name: str) -> str:
    """A name without its case, and with letters composed: systems store accents apart or not."""
    return unicodedata.normalize("NFC", name).casefold()


def _places(classes: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
    """The place of each class among the wanted ones, by its name, else by its name in any case."""
    exact = {name: place for place, name in enumerate(wanted)}
    folded: dict[str, list[int]] = {}
    for place, name in enumerate(wanted):
        folded.setdefault(_folded(name), []).append(place)
    found = []
    for name in classes:
        near = folded.get(_folded(name), [])
        found.append(exact.get(name, near[0] if len(near) == 1 else -1))
    return np.array(found, dtype=np.int64)
