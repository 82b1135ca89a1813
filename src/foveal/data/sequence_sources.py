"""Where sequences come from: generated expressions, texts with classes, rows of grey pixels."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foveal.data import listops
from foveal.data.class_folders import by_class
from foveal.data.examples import ExampleParts, Examples, Read, all_of, in_parts, of_parts
from foveal.data.folders import file_parts, folder_parts
from foveal.data.image_hub import hub_labels, hub_parts, label_column, load_hub
from foveal.data.image_sources import find_images
from foveal.data.labels import as_classes
from foveal.data.opening import Reader
from foveal.data.sequences import SequenceDataConfig, SequenceSet
from foveal.data.tables import BadRowError, is_table, read_rows, text_of
from foveal.data.text_files import decode_text, is_packed, mark_of, read_bytes
from foveal.data.text_kinds import keep_texts
from foveal.data.walk import LeftOut, data_path, is_hidden, printable, subfolders, walk

LISTOPS = "listops"
_LUMA = (0.299, 0.587, 0.114)  # of ITU-R BT.601, as Pillow's "L"
_BATCH = 1024


def _find(config: SequenceDataConfig, path: str, left: LeftOut, most: int) -> ExampleParts:
    if path == LISTOPS:
        return _generated(config)
    if path.endswith(".npz"):
        return find_images(config, path, left, most)
    return find_texts(config, path, left)


def _generated(config: SequenceDataConfig) -> ExampleParts:
    """Expressions; the held-out ones come first, so that they do not depend on how many follow."""
    count = config.test_examples + config.train_examples
    made = list(itertools.islice(listops.generate(count), count))
    rows = [tokens[: config.length] for tokens, _ in made]

    def load(index: np.ndarray) -> Read:
        return [rows[i] for i in index], []

    labels = np.array([value for _, value in made], np.int64)
    whole = all_of("ListOps", labels, [str(value) for value in range(10)], load)
    return whole.in_parts(np.arange(count) < config.test_examples)


def _read(config: SequenceDataConfig, examples: Examples, left: LeftOut, most: int) -> SequenceSet:
    good, pieces = examples.read(left, most)
    name = good.name
    if any(isinstance(piece, np.ndarray) for piece in pieces):  # of pictures
        name, pieces = f"{name}, grey", [_grey(piece)[:, : config.length] for piece in pieces]
    rows = [row for piece in pieces for row in piece]
    num_tokens = listops.NUM_TOKENS if config.path == LISTOPS else 256
    return SequenceSet(name, rows, good.labels, good.classes, num_tokens)


def _grey(pixels: np.ndarray) -> np.ndarray:
    """Pictures (n, size, size, 3) row by row, as bytes (n, size * size)."""
    luma = torch.tensor(_LUMA)[:, None, None]
    parts = torch.from_numpy(pixels).permute(0, 3, 1, 2).split(_BATCH)
    grey = [(part.float() * luma).sum(1).round().byte().flatten(1) for part in parts]
    flat: Any = torch.cat(grey).numpy()
    return flat


_TEXT, _LABEL = "text", "label"
_UNLABELLED = ("unsup", "unsupervised", "unlabeled", "unlabelled")


def find_texts(
    config: SequenceDataConfig, path: str, left: LeftOut, most: int = 0
) -> ExampleParts:
    """A data set by part, unread.

    Raises:
        ValueError: no such data, or no classes.
    """
    if path.startswith("hf:"):
        splits = hub_parts(load_hub(path))
        name = path.removeprefix("hf:")
        return in_parts(
            {part: _of_hub(split, name, config, left) for part, split in splits.items()}, left
        )
    root = data_path(path)
    if root.is_file() and is_table(root, json_too=True):
        return ExampleParts(_of_tables([root], printable(root.name), config, left))
    if not root.is_dir():
        raise ValueError(
            f"data.path={path!r} is no folder; name 'listops', a folder of class folders "
            "of text files, a table with a text and a label column, a .npz archive of pictures, "
            "or 'hf:NAME'."
        )
    return _of_folder(root, config, left)


def _of_folder(root: Path, config: SequenceDataConfig, left: LeftOut) -> ExampleParts:
    name, folders = printable(root.name), folder_parts(root)
    if folders is not None:
        scored = (*folders.valid, *folders.test)
        labelled = {folder.name for home in scored for folder in subfolders(home)}
        found = of_parts(
            folders,
            root,
            left,
            lambda homes, called: _of_classes(homes[0], called, config, left, labelled),
        )
        return in_parts(found, left)
    tables = [path for path in walk(root, LeftOut()) if is_table(path, json_too=True)]
    tables = [path for path in tables if path.parent == root]
    if not tables or subfolders(root):
        return ExampleParts(_of_classes(root, name, config, left, set()))
    parts = file_parts(tables)
    if parts is None:
        return ExampleParts(_of_tables(tables, name, config, left))
    found = of_parts(
        parts, root, left, lambda paths, called: _of_tables(paths, called, config, left)
    )
    return in_parts(found, left)


def _of_classes(
    root: Path, name: str, config: SequenceDataConfig, left: LeftOut, labelled: set[str]
) -> Examples:
    """Text files by class folder, those without text and those in no class counted.

    Args:
        labelled: classes that are scored; IMDB has a folder "unsup" beside them, of none.
    """

    def has_no_class(folder: Path) -> bool:
        unlabelled = folder.name.lower() in _UNLABELLED
        return bool(labelled) and unlabelled and folder.name not in labelled

    keep = partial(keep_texts, tables=False)
    files, labels, classes = by_class(root, left, keep, "texts", has_no_class)
    for path in sorted(root.iterdir()):
        if not path.is_dir() and not is_hidden(path.name):
            left.add_file(path)

    def load(index: np.ndarray) -> Read:
        return _checked([_start_of(files[i], config.length) for i in index])

    return all_of(name, labels, classes, load, files=[str(path) for path in files])


def _start_of(path: Path, length: int) -> bytes | str:
    """The first bytes of a text as UTF-8; a sentence where it cannot be read."""
    try:
        if is_packed(path):
            raw = read_bytes(path)
        else:
            with path.open("rb") as file:
                raw = file.read(length + 4)
                if mark_of(raw)[1] != "utf-8":
                    raw += file.read()
        mark, encoding = mark_of(raw)
        raw = raw[mark:] if encoding == "utf-8" else decode_text(raw, printable(path)).encode()
    except (OSError, ValueError) as error:
        return f"{printable(path)} cannot be read: {error}"
    return raw[:length] or f"{printable(path)} is empty."


def _checked(found: list[bytes | str]) -> Read:
    """Arrays, and what was wrong, by number."""
    rows = [np.frombuffer(raw if isinstance(raw, bytes) else b"", np.uint8) for raw in found]
    return rows, [(number, raw) for number, raw in enumerate(found) if isinstance(raw, str)]


def _in_memory(
    rows: list[bytes], values: Any, name: str, where: str, config: SequenceDataConfig
) -> Examples:
    labels, classes, named = as_classes(values, where)

    def load(index: np.ndarray) -> Read:
        return _checked([rows[i][: config.length] for i in index])

    return all_of(name, labels, classes, load, named=named)


def _of_tables(
    paths: Sequence[Path], name: str, config: SequenceDataConfig, left: LeftOut
) -> Examples:
    """Rows of tables with a text and a label."""
    text, label = config.column or _TEXT, config.label or _LABEL
    rows: list[bytes] = []
    values: list[Any] = []
    for path in paths:
        for called, row in read_rows(path, (text, label)):
            if isinstance(row, BadRowError):
                raise row
            found = text_of(row, text, called)
            value = row.get(label)
            if not found or value in (None, ""):
                left.add(f"row without {text if not found else label}", called)
            else:
                rows.append(found.encode())
                values.append(value)
    kinds = sorted({type(value).__name__ for value in values})
    where = f"{printable(paths[0].name)}, column {label!r}"
    if len(kinds) > 1 and kinds != ["float", "int"]:
        raise ValueError(f"labels of {where} must be of one kind, got {' and '.join(kinds)}.")
    if any(isinstance(value, list | dict) for value in values):
        raise ValueError(f"labels of {where} must be one class for each example, got {kinds[0]}.")
    if not rows:
        raise ValueError(f"{printable(paths[0])} has no rows with {text!r} and {label!r}.")
    return _in_memory(rows, values, name, where, config)


def _of_hub(split: Any, name: str, config: SequenceDataConfig, left: LeftOut) -> Examples:
    """A text data set with a column of classes, such as hf:imdb."""
    features = split.features
    label = config.label or label_column(features)
    text = config.column or next(
        (k for k, v in features.items() if getattr(v, "dtype", "") == "string" and k != label),
        None,
    )
    if label is None or label not in features or text not in features:
        raise ValueError(
            f"the data set {name!r} must have a text and a ClassLabel column, it has "
            f"{', '.join(features)}."
        )
    items = [(item[text] or "", item[label]) for item in split]
    values = [value for _, value in items]
    labels, classes = hub_labels(split, values, label, name)
    rows = [text.encode("utf-8", "replace")[: config.length] for text, _ in items]
    empty = sum(not row for row in rows)
    missing = int((labels < 0).sum())
    for kind, count in (("row without text", empty), ("row without a label", missing)):
        if count:
            left.add(kind, name, count)
    kept = np.array([bool(row) for row in rows]) & (labels >= 0)

    def load(index: np.ndarray) -> Read:
        return _checked([rows[i] for i in index])

    return all_of(name, labels, classes, load).subset(np.flatnonzero(kept))


SEQUENCES = Reader(_find, _read, "sequence", "sequences", limit="max_examples")

open_sequences, sequences_to_score = SEQUENCES.pair, SEQUENCES.to_score
