"""How data are laid out: training, validation and test parts, as folders or as files."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foveal.data.tables import TABLES
from foveal.data.text_files import PACKED
from foveal.data.walk import LeftOut, is_hidden, subfolders

TEXTS = (".txt", ".text", ".raw", ".tokens", ".tok")
"""Suffixes of texts that may be parts by their names."""

SPELLINGS = {
    "train": ("train", "training", "trainset", "trainingset", "traindata", "trainingdata"),
    "valid": (
        *("valid", "val", "validation", "dev", "development", "validset", "valset"),
        *("validationset", "devset", "validdata", "valdata", "validationdata"),
    ),
    "test": ("test", "testing", "testset", "testingset", "testdata", "testingdata"),
}
"""What people call each part, in the order of preference; case, '-', '_' and ' ' aside."""

_STORED = frozenset(suffix[1:] for suffix in (*TABLES, *PACKED, *TEXTS))

_PART_OF = {word: part for part, words in SPELLINGS.items() for word in words}


@dataclass(frozen=True)
class Parts:
    """The parts of a data set; each a folder, or files.

    Attributes:
        train, valid, test: where they are; empty where there is none.
        others: files and folders beside them that belong to no part.
    """

    train: tuple[Path, ...]
    valid: tuple[Path, ...] = ()
    test: tuple[Path, ...] = ()
    others: tuple[Path, ...] = field(default=())

    def items(self) -> list[tuple[str, tuple[Path, ...]]]:
        """The parts that there are."""
        return [(part, getattr(self, part)) for part in SPELLINGS if getattr(self, part)]

    def count_others(self, left: LeftOut, kind: str = "file") -> None:
        """Count what lies beside the parts; `kind` is a word for a file there."""
        for other in self.others:
            left.add(f"{'folder' if other.is_dir() else kind} beside the parts", other.name)


def part_of(name: str) -> str | None:
    """The part that a name means, such as "valid" for "Dev" or "val-set"; None for others."""
    return _PART_OF.get(re.sub(r"[-_ ]", "", name.lower()))


def folder_parts(root: Path) -> Parts | None:
    """The folders of root that are parts; None where root has no folder for training.

    A folder "train" beside other folders, which holds files and no folders, is one class of many
    (trains, buses, cars), and no part.
    """
    found: dict[str, list[Path]] = defaultdict(list)
    others = []
    for folder in subfolders(root):
        part = part_of(folder.name)
        if part is None:
            others.append(folder)
        else:
            found[part].append(folder)
    if not found["train"]:
        return None
    alone = not found["valid"] and not found["test"]
    if alone and others and not any(subfolders(folder) for folder in found["train"]):
        return None
    chosen = {part: _preferred(folders) for part, folders in found.items() if folders}
    unused = [f for folders in found.values() for f in folders if f not in chosen.values()]
    files = sorted(f for f in root.iterdir() if not f.is_dir() and not is_hidden(f.name))
    return Parts(
        **{part: (folder,) for part, folder in chosen.items()}, others=(*others, *unused, *files)
    )


def file_parts(files: Iterable[Any]) -> Parts | None:
    """Files beside each other that are parts: train.txt and test.txt, wiki.train.tokens, ...

    None unless there is one for training and one to score on that are called alike otherwise, if
    need be but for how they are stored: train.csv and test.jsonl, train.txt and test.txt.gz.
    """
    names = list(files)
    whole = _alike(names, frozenset()) or _alike(names, _STORED)
    if not whole:
        return None
    chosen = {p: tuple(sorted(f for g in whole for f in g[p])) for p in SPELLINGS}
    used = {path for paths in chosen.values() for path in paths}
    return Parts(**chosen, others=tuple(path for path in names if path not in used))


def _alike(names: Iterable[Any], aside: frozenset[str]) -> list[dict[str, list[Path]]]:
    """Groups by part of files that are called alike, words of `aside` and numbers aside."""
    groups: dict[tuple[str, ...], dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for path in names:
        words = [word for word in re.split(r"[-_. ]+", path.name.lower()) if word]
        parts = [part for word in words if (part := _PART_OF.get(word))]
        if len(parts) == 1:
            rest = [w for w in words if w not in _PART_OF and w != "of" and not w.isdigit()]
            groups[tuple(w for w in rest if w not in aside)][parts[0]].append(path)
    return [g for g in groups.values() if g["train"] and (g["valid"] or g["test"])]


def _preferred(folders: list[Path]) -> Path:
    """Of several spellings of one part the first that is listed."""
    order = list(_PART_OF)
    return min(folders, key=lambda f: (order.index(re.sub(r"[-_ ]", "", f.name.lower())), f.name))
