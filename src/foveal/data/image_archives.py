"""Pictures in NumPy archives (.npz), as arrays or as encoded files, by part or in one piece."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from foveal.common.inputs import require_file
from foveal.data.examples import ExampleParts, Examples, all_of, in_parts
from foveal.data.folders import part_of
from foveal.data.images import Decoded, collect
from foveal.data.labels import as_classes
from foveal.data.pictures import resize_and_crop, to_rgb
from foveal.data.walk import LeftOut, printable

_IMAGES, _LABELS = (
    ("images", "image", "x", "pixels"),
    ("label", "labels", "y", "target", "targets"),
)
_MOST_BYTES = 64 << 30

Arrays = dict[str, np.ndarray]


def find_archive(path: Path, size: int, left: LeftOut) -> ExampleParts:
    """The pictures of an archive; its parts are named like x_train or test_images, or by is_test.

    Raises:
        ValueError: it is damaged, would fill the memory, holds objects, or has other keys.
    """
    parts = _parts_of(_load(path), path)
    found = {part: _examples(arrays, path, size, part) for part, arrays in parts.items()}
    if "train" not in found:
        found = {"train": next(iter(found.values()))}
    is_test = parts.get("train", {}).get("is_test")
    if is_test is None:
        return in_parts(found, left)
    return found["train"].in_parts(_flags(is_test, len(found["train"]), path))


def _load(path: Path) -> Arrays:
    require_file(path, "the archive")
    try:
        with zipfile.ZipFile(path) as packed:
            total = sum(member.file_size for member in packed.infolist())
        if total > _MOST_BYTES:
            raise ValueError(f"it holds {total:,} bytes, more than the {_MOST_BYTES:,} allowed")
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files if _is_known(name)}
    except Exception as error:  # damaged archives fail in many ways
        reason = " ".join(str(error).split()) or type(error).__name__
        if "allow_pickle" in reason:
            reason = "it holds Python objects, which are never loaded; store plain arrays"
        raise ValueError(f"{printable(path)} is not a readable .npz archive: {reason}.") from None


def _is_known(name: str) -> bool:
    _, kind = _part_and_kind(name)
    return kind in (*_IMAGES, *_LABELS, "data", "offset", "classes", "is_test")


def _part_and_kind(name: str) -> tuple[str, str]:
    """What x_train or val_labels hold: ("train", "x"), ("valid", "labels"); ("", name) else."""
    words = [word for word in re.split(r"[-_ ]+", name.lower()) if word]
    if len(words) == 2 and name != "is_test":
        for word, other in (words, words[::-1]):
            if (part := part_of(word)) is not None:
                return part, other
    return "", name.lower()


def _parts_of(arrays: Arrays, path: Path) -> dict[str, Arrays]:
    """Arrays by part; one part, "train", where the names tell of none."""
    parts: dict[str, Arrays] = {}
    for name, array in arrays.items():
        part, kind = _part_and_kind(name)
        parts.setdefault(part, {})[kind] = array
    shared = parts.pop("", {})
    if not parts:
        return {"train": shared}
    both = [name for name in (*_IMAGES, *_LABELS, "data") if name in shared]
    if both:
        raise ValueError(f"{printable(path)} must have {both[0]!r} by part or in one, not both.")
    return {part: {**shared, **own} for part, own in parts.items()}


def _examples(arrays: Arrays, path: Path, size: int, part: str) -> Examples:
    values = _one_of(arrays, _LABELS, path)
    if len(np.atleast_1d(values)) == 0:
        raise ValueError(f"the archive {printable(path)} holds no pictures.")
    names = arrays.get("classes")
    if names is not None and (names.ndim != 1 or names.dtype.kind not in "US"):
        raise ValueError(f"'classes' of {printable(path)} must be a list of names.")
    labels, classes, named = as_classes(
        values, printable(path), None if names is None else [str(name) for name in names]
    )
    pictures = next((arrays[name] for name in _IMAGES if name in arrays), None)
    if pictures is None:
        load, count = _encoded(arrays, len(labels), size, path)
    else:
        load, count = _plain(pictures, size, path)
    if count != len(labels):
        raise ValueError(f"{printable(path)} has {count} images, but {len(labels)} labels.")
    name = printable(path.name) if part == "train" else f"{printable(path.name)}, {part} part"
    return all_of(name, labels, classes, load, named=named)


def _one_of(arrays: Arrays, names: Sequence[str], path: Path) -> np.ndarray:
    for name in names:
        if name in arrays:
            return arrays[name]
    raise ValueError(
        f"the archive {printable(path)} must have {names[0]!r}, and 'images' or 'data' with "
        f"'offset'; it has {', '.join(sorted(arrays)) or 'nothing'} of what is known."
    )


def _flags(values: np.ndarray, count: int, path: Path) -> np.ndarray:
    if values.shape != (count,) or not np.isin(values, (0, 1)).all():
        raise ValueError(
            f"'is_test' of {printable(path)} must be True or False for each of the {count} "
            f"pictures, got shape {values.shape} of {values.dtype}."
        )
    return values.astype(bool)


def _plain(images: np.ndarray, size: int, path: Path) -> tuple[Any, int]:
    """Plain arrays (n, height, width[, channels]) or (n, channels, height, width)."""
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4:
        raise ValueError(
            f"'images' of {printable(path)} must have 3 or 4 axes, got shape {images.shape}."
        )
    if images.shape[3] not in (1, 3, 4) and images.shape[1] in (1, 3):
        images = images.transpose(0, 2, 3, 1)
    if images.shape[3] not in (1, 3, 4) or 0 in images.shape[1:]:
        raise ValueError(
            f"'images' of {printable(path)} must have pixels of 1, 3 or 4 channels, got shape "
            f"{images.shape}."
        )
    top = _range_of(images, path)
    return lambda index: (_resized(images[index], top, size), []), len(images)


def _range_of(images: np.ndarray, path: Path) -> float:
    """The value of white: 255 for bytes, 1 for bools and floats up to 1, 65535 for 16 bits.

    The range of all pictures together decides, so that a dark one stays dark.

    Raises:
        ValueError: NaN, infinity, negative values, or other ranges.
    """
    what = f"'images' of {printable(path)}"
    if images.dtype.kind not in "uifb":
        raise ValueError(f"{what} must be numbers, got dtype {images.dtype}.")
    if images.dtype == np.uint8 or not images.size:
        return 255.0
    if images.dtype.kind == "b":
        return 1.0
    low, high = float(images.min()), float(images.max())
    if not np.isfinite(low + high):
        count = int((~np.isfinite(images)).sum())
        raise ValueError(f"{what} must be finite, got {count:,} NaN or infinite values.")
    if low < 0:
        advice = "(x + 1) / 2 takes -1..1 to 0..1" if low >= -1 and high <= 1 else "shift them"
        raise ValueError(f"{what} must not be negative, got {low:g} to {high:g}; {advice}.")
    steps = (1.0, 255.0) if images.dtype.kind == "f" else (255.0, 65535.0)
    top = next((step for step in steps if high <= step), None)
    if top is None:
        raise ValueError(
            f"{what} must lie between 0 and {steps[0]:g} or {steps[1]:g}, got {low:g} to {high:g}."
        )
    return top


def _resized(images: np.ndarray, top: float, size: int) -> np.ndarray:
    from PIL import Image

    if images.dtype != np.uint8:
        images = (images.astype(np.float64) * (255 / top)).round().astype(np.uint8)
    if images.shape[3] == 4:
        return np.stack([resize_and_crop(_on_white(image), size) for image in images])
    images = np.repeat(images, 3, 3) if images.shape[3] == 1 else images
    if images.shape[1:3] == (size, size):
        return images
    return np.stack([resize_and_crop(Image.fromarray(image), size) for image in images])


def _on_white(image: np.ndarray) -> Any:
    from PIL import Image

    return to_rgb(Image.fromarray(image), "a picture")


def _encoded(arrays: Arrays, count: int, size: int, path: Path) -> tuple[Any, int]:
    """Encoded files back to back in `data`, the i-th from offset[i] to offset[i + 1]."""
    data, offset = _one_of(arrays, ("data",), path), _one_of(arrays, ("offset",), path)
    if data.dtype != np.uint8 or data.ndim != 1:
        raise ValueError(
            f"'data' of {printable(path)} must be bytes, uint8 (n,), got {data.dtype} "
            f"{data.shape}; plain pictures are called 'images'."
        )
    fits = offset.ndim == 1 and offset.dtype.kind in "iu" and len(offset) == count + 1
    if not fits or offset[0] < 0 or offset[-1] > len(data) or (offset[1:] < offset[:-1]).any():
        raise ValueError(
            f"'offset' of {printable(path)} must be {count + 1} growing ints within the "
            f"{len(data)} bytes of 'data', got {len(np.atleast_1d(offset))}."
        )

    def load(index: np.ndarray) -> Decoded:
        jobs = (
            (data[offset[i] : offset[i + 1]].tobytes(), size, f"picture {i} of {path.name}")
            for i in index
        )
        return collect(jobs, len(index), size)

    return load, count
