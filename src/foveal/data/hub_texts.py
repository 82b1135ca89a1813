"""Texts of Hugging Face `datasets`: hf:NAME, whose rows lie in Arrow files until they are read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from foveal.common.words import suggest
from foveal.data.corpus import Span
from foveal.data.image_hub import hub_parts, load_hub

_ROWS = 10_000
_TEXT_KEYS = ("text", "content", "document", "sentence")


class HubTexts:
    """A column of texts as one long array of bytes, a newline behind each text that is not empty.

    Args:
        split: a map-style data set; its rows stay where they are, their lengths are held.
        column: of the texts.
        name: what to call it.
    """

    def __init__(self, split: Any, column: str, name: str) -> None:
        self.name, self.column = name, column
        self._rows = split.select_columns([column]).with_format("arrow")
        lengths = [
            _lengths(self._rows[i : i + _ROWS][column]) for i in range(0, len(split), _ROWS)
        ]
        sizes = np.concatenate(lengths) if lengths else np.zeros(0, np.int64)
        self._there = np.flatnonzero(sizes)
        self._starts = np.cumsum([0, *(sizes[self._there] + 1)])

    def __str__(self) -> str:
        return self.name

    def __len__(self) -> int:
        """Bytes in all."""
        return int(self._starts[-1])

    def read_into(self, out: np.ndarray, start: int) -> None:
        """Fill `out`, uint8 (length,), with the bytes from `start`."""
        if not len(out):
            return
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        last = int(np.searchsorted(self._starts, start + len(out), side="left"))
        rows = self._there[first:last]
        found = self._rows[int(rows[0]) : int(rows[-1]) + 1][self.column].to_pylist()
        raw = b"".join(f"{text}\n".encode() for text in found if text)
        skip = start - int(self._starts[first])
        out[:] = np.frombuffer(raw, np.uint8, len(out), skip)

    def begins(self, places: np.ndarray) -> np.ndarray:
        """Where the text begins that each place is in, int64 like `places` (n,)."""
        return self._starts[np.searchsorted(self._starts, places, side="right") - 1]


def _lengths(column: Any) -> np.ndarray:
    """Bytes of each text in UTF-8, int64 (n,); 0 where there is none."""
    import pyarrow.compute

    found: np.ndarray = pyarrow.compute.binary_length(column).fill_null(0).to_numpy()
    return found.astype(np.int64)


def hub_texts(path: str, column: str) -> dict[str, list[Span]]:
    """The texts of each part of hf:NAME.

    Raises:
        ValueError: the package is missing, or there are no such data, or no such column.
    """
    found = {}
    for part, split in hub_parts(load_hub(path)).items():
        texts = HubTexts(split, text_column(split, column, path), f"{path}, {part} part")
        found[part] = [Span(texts, 0, len(texts))]
    return found


def text_column(split: Any, column: str, path: str) -> str:
    """The column of the texts: as told, else one that is usually called so, else the only one.

    Raises:
        ValueError: there is none of that name, or several.
    """
    features = split.features or {}
    texts = [k for k, v in features.items() if getattr(v, "dtype", "") in _KINDS]
    known = [key for key in _TEXT_KEYS if key in texts]
    if column in texts:
        return column
    if column or not (known or len(texts) == 1):
        there = ", ".join(map(repr, texts)) or "none"
        hint = suggest(column, texts, "name one with --data.column.")
        raise ValueError(f"data.path={path!r} has the columns of text {there}; {hint}")
    return known[0] if known else texts[0]


_KINDS = ("string", "large_string")


def texts_in(rows: Any, column: str) -> Iterator[bytes]:
    """The texts of a stream of rows, a newline behind each that is not empty."""
    for row in rows:
        if row[column]:
            yield f"{row[column]}\n".encode()
