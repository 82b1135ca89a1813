"""Labels as people store them, as classes: used as they are meant, or refused, never cast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from foveal.data.text_files import is_whole

_MOST_NUMBERED = 1024


def as_classes(
    values: Any, where: str, names: Sequence[str] | None = None
) -> tuple[np.ndarray, list[str], bool]:
    """One class for each example.

    Whole numbers are classes by their number (also if they are stored as floats), texts by their
    name, rows with a single one (one-hot) by its place.

    Args:
        values: one label an example: ints, bools, whole floats, texts, or one-hot rows.
        where: what to call them in errors.
        names: the name of each number.

    Returns:
        labels: int64 (n,).
        classes: the name of each.
        whether the names are the data's own, and not made from numbers.

    Raises:
        ValueError: fractions, NaN, negative numbers, numbers without a name, rows that are not
            one-hot, anything else.
    """
    found = np.asarray(values)
    if found.ndim == 2 and found.shape[1] == 1:
        found = found[:, 0]
    if found.ndim == 2:
        found = _from_one_hot(found, where)
    if found.ndim != 1:
        raise ValueError(
            f"labels of {where} must be one for each example, got shape {found.shape}."
        )
    if found.dtype.kind in "US":
        return _from_texts(found, where, names)
    return _from_numbers(_whole(found, where), where, names)


def _from_texts(
    found: np.ndarray, where: str, names: Sequence[str] | None
) -> tuple[np.ndarray, list[str], bool]:
    if found.dtype.kind == "S":
        found = np.char.decode(found, "utf-8", "backslashreplace")
    classes = sorted(set(found.tolist())) if names is None else list(names)
    if "" in set(found.tolist()):
        raise ValueError(f"labels of {where} must not be empty texts.")
    broken = [name for name in classes if not is_whole(name)]
    if broken:
        raise ValueError(
            f"labels of {where} must be whole texts, got half a letter: {broken[0]!r}."
        )
    places = {name: place for place, name in enumerate(classes)}
    unknown = sorted(set(found.tolist()) - places.keys())
    if unknown:
        raise ValueError(
            f"labels of {where} must be among its classes {', '.join(classes[:8])}, "
            f"got {unknown[0]!r}."
        )
    return np.array([places[name] for name in found.tolist()], np.int64), classes, True


def _whole(found: np.ndarray, where: str) -> np.ndarray:
    """Numbers as int64, if they are whole."""
    if found.dtype.kind in "iub":
        if found.dtype == np.uint64 and found.max(initial=0) > np.iinfo(np.int64).max:
            raise ValueError(f"labels of {where} are too large, got {found.max()}.")
        return found.astype(np.int64)
    if found.dtype.kind != "f":
        raise ValueError(
            f"labels of {where} must be whole numbers or texts, got dtype {found.dtype}."
        )
    wrong = found[~(np.isfinite(found) & (found == np.round(found)) & (abs(found) < 2**53))]
    if len(wrong):
        raise ValueError(
            f"labels of {where} must be whole numbers or texts, one class for each example, "
            f"got {wrong[0]}."
        )
    return found.astype(np.int64)


def _from_numbers(
    found: np.ndarray, where: str, names: Sequence[str] | None
) -> tuple[np.ndarray, list[str], bool]:
    if len(found) and found.min() < 0:
        raise ValueError(f"labels of {where} must not be negative, got {found.min()}.")
    top = int(found.max(initial=-1))
    if names is not None:
        if top >= len(names):
            raise ValueError(
                f"labels of {where} must be below the {len(names)} classes, got {top}."
            )
        return found, list(names), True
    distinct = np.unique(found)
    if top + 1 <= max(_MOST_NUMBERED, 2 * len(distinct)):
        return found, [str(number) for number in range(top + 1)], False
    # sparse numbers, such as ids: a class for each that is there
    classes = [str(number) for number in distinct.tolist()]
    return np.searchsorted(distinct, found).astype(np.int64), classes, True


def _from_one_hot(found: np.ndarray, where: str) -> np.ndarray:
    is_hot = found.dtype.kind in "iubf" and np.isin(found, (0, 1)).all()
    if not is_hot or not (found.sum(1) == 1).all():
        raise ValueError(
            f"labels of {where} must be one class for each example, or rows with a single 1, got "
            f"shape {found.shape} of other values."
        )
    return found.argmax(1)
