"""Pictures of Hugging Face `datasets`: hf:NAME, hf:imagefolder:FOLDER, hf-stream:NAME"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from foveal.data.examples import ExampleParts, Examples, all_of, in_parts
from foveal.data.folders import part_of
from foveal.data.images import Decoded, collect
from foveal.data.labels import as_classes
from foveal.data.walk import LeftOut

_LABEL_COLUMNS = ("label", "labels", "class", "target", "fine_label")
_BUFFER = 10_000


def load_hub(path: str, **options: Any) -> Any:
    """What `datasets.load_dataset` gives for hf:NAME or hf:NAME:FOLDER.

    Raises:
        ValueError: the package is missing, or has no such data.
    """
    try:
        import datasets
    except ModuleNotFoundError:
        raise ValueError(
            f"data.path={path!r} needs the package datasets: pip install datasets"
        ) from None
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
        limit: of a streamed training part only so many are fetched, from a shuffled buffer.
    """
    stream = path.startswith("hf-stream")
    name = path.partition(":")[2]
    splits = hub_parts(load_hub(path, streaming=stream))
    return in_parts(
        {
            part: _read(split, size, name, left, limit if stream and part == "train" else 0)
            for part, split in splits.items()
        },
        left,
    )


def _read(split: Any, size: int, name: str, left: LeftOut, limit: int) -> Examples:
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
    # undecoded, so that a damaged picture is skipped and not the end of the pass
    split = split.cast_column(image_key, datasets.Image(decode=False))
    if limit:  # data often lie class by class
        split = split.shuffle(seed=0, buffer_size=_BUFFER).take(limit)
    sources, values = [], []
    for item in split:
        entry = item[image_key]
        sources.append(entry["bytes"] if entry["bytes"] is not None else entry["path"])
        values.append(item[label_key])
    labels, classes = hub_labels(split, values, label_key, name)
    missing = int((labels < 0).sum())
    if missing:
        left.add("without a label", name, missing)

    def load(index: np.ndarray) -> Decoded:
        jobs = ((sources[i], size, f"picture {i} of {name}") for i in index)
        return collect(jobs, len(index), size)

    found = all_of(name, labels, classes, load)
    return found.subset(np.flatnonzero(labels >= 0)) if missing else found
