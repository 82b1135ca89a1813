"""Pictures of Hugging Face `datasets`: hf:NAME, hf:imagefolder:FOLDER, hf-stream:NAME"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from foveal.common.packages import need
from foveal.data.examples import ExampleParts, Examples, all_of, in_parts
from foveal.data.folders import part_of
from foveal.data.images import Decoded, collect
from foveal.data.labels import as_classes
from foveal.data.walk import LeftOut

_LABEL_COLUMNS = ("label", "labels", "class", "target", "fine_label")
_BUFFER = 10_000
_SCORED = 2000
HUB, STREAM = "hf:", "hf-stream:"
"""How data of the Hub begin that lie here when they are read, and data that come by a stream."""


def load_hub(path: str, **options: Any) -> Any:
    """What `datasets.load_dataset` gives for hf:NAME or hf:NAME:FOLDER.

    Raises:
        ValueError: the package is missing, or has no such data.
    """
    try:
        datasets: Any = need("datasets", f"data.path={path!r}")
    except ModuleNotFoundError as error:
        raise ValueError(str(error)) from None
    rest = path.partition(":")[2]
    name, _, folder = rest.partition(":")
    if folder and not Path(folder).is_dir():
        raise ValueError(f"data.path={path!r} names a folder that does not exist.")
    options |= {"data_dir": folder} if folder else {}
    try:
        return datasets.load_dataset(name, **options)
    except Exception as error:  # the package has many ways to say no
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"datasets cannot load {rest!r}: {reason}") from None


def hub_parts(found: Any) -> dict[str, Any]:
    """Splits by part, as people call them; the first is trained on if none is named so."""
    parts: dict[str, Any] = {}
    for name in found:
        part = part_of(name)
        if part is not None:
            parts.setdefault(part, found[name])
    if "train" not in parts:
        parts["train"] = found[next(iter(found))]
    return parts


def hub_labels(split: Any, values: list[Any], key: str, name: str) -> tuple[np.ndarray, list[str]]:
    """Labels (n,) with -1 where there is none, as `datasets` marks them, and the classes."""
    import datasets

    feature = split.features[key]
    names = feature.names if isinstance(feature, datasets.ClassLabel) else None
    known = np.array([value is not None and value != -1 for value in values], dtype=bool)
    labels = np.full(len(values), -1, np.int64)
    if not known.any():
        return labels, list(names or [])
    there = [value for value, is_there in zip(values, known, strict=True) if is_there]
    labels[known], classes, _ = as_classes(there, name, names)
    return labels, classes


def label_column(features: Any) -> str | None:
    """The column of classes: a ClassLabel, else one that is called so."""
    import datasets

    found = next((k for k, v in features.items() if isinstance(v, datasets.ClassLabel)), None)
    return found or next((name for name in _LABEL_COLUMNS if name in features), None)


def find_hub(path: str, size: int, left: LeftOut, limit: int = 0) -> ExampleParts:
    """The pictures of a data set, undecoded.

    Args:
        limit: of a streamed training part only so many are fetched, from a shuffled buffer; of
            any other part of a stream, and without a limit, the first 2,000.
    """
    stream = path.startswith(STREAM)
    name = path.partition(":")[2]
    splits = hub_parts(load_hub(path, streaming=stream))
    return in_parts(
        {
            part: _read(split, size, name, left, limit if part == "train" else 0, stream)
            for part, split in splits.items()
        },
        left,
    )


def columns_of(split: Any, name: str) -> tuple[str, str]:
    """The columns of the pictures and of their classes.

    Raises:
        ValueError: it lacks one.
    """
    import datasets

    features = split.features or {}
    image_key = next((k for k, v in features.items() if isinstance(v, datasets.Image)), None)
    label_key = label_column(features)
    if image_key is None or label_key is None:
        advice = ""
        if name.startswith("imagefolder:"):
            advice = " imagefolder wants class folders of one depth; or name the folder alone."
        raise ValueError(
            f"the data set {name!r} must have an Image and a ClassLabel column, it has "
            f"{', '.join(features) or 'none'}.{advice}"
        )
    return image_key, label_key


class HubPictures:
    """Reads pictures of a data set by their numbers; of a map-style one no others are touched.

    Args:
        rows: a split whose pictures are not decoded, or a list of its rows.
        key: their column.
        size: of the result.
        name: of the data, for messages.
    """

    def __init__(self, rows: Any, key: str, size: int, name: str) -> None:
        self.rows = rows if isinstance(rows, list) else rows.select_columns([key])
        self.key, self.size, self.name = key, size, name

    def __call__(self, index: np.ndarray) -> Decoded:
        """Pixels uint8 (n, size, size, 3) of rows int64 (n,), and what was wrong with some."""
        jobs = (
            (partial(self._file, i), self.size, f"picture {i} of {self.name}")
            for i in index.tolist()
        )
        return collect(jobs, len(index), self.size)

    def _file(self, number: int) -> str | bytes:
        return file_of(self.rows[number][self.key])


def file_of(entry: Any) -> str | bytes:
    """An undecoded picture: the bytes of its file, or its path."""
    found: str | bytes = entry["bytes"] if entry["bytes"] is not None else entry["path"]
    return found


def _read(split: Any, size: int, name: str, left: LeftOut, limit: int, stream: bool) -> Examples:
    import datasets

    image_key, label_key = columns_of(split, name)
    # undecoded, so that a damaged picture is skipped and not the end of the pass
    split = split.cast_column(image_key, datasets.Image(decode=False))
    if not stream:
        values = split.select_columns([label_key])[:][label_key]
        rows = HubPictures(split, image_key, size, name)
    else:
        if limit:  # data often lie class by class
            split = split.shuffle(seed=0, buffer_size=_BUFFER)
        split = split.take(limit or _SCORED)
        items = list(split)
        values = [item[label_key] for item in items]
        rows = HubPictures(items, image_key, size, name)
    labels, classes = hub_labels(split, values, label_key, name)
    missing = int((labels < 0).sum())
    if missing:
        left.add("without a label", name, missing)

    found = all_of(name, labels, classes, rows, pictures=None if stream else rows)
    return found.subset(np.flatnonzero(labels >= 0)) if missing else found
