"""What a run folder keeps beside its weights, without which the model cannot be made again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveal.common.files import read_json

if TYPE_CHECKING:
    from foveal.data.tokens import CaptionTokenizer

CLASSES = "classes.json"
"""Names of a classifier's classes."""

VOCABULARY = "num_tokens.json"
"""Size of the vocabulary of a classifier of sequences."""

TOKENIZER = "tokenizer.json"
"""Byte pairs of the captions."""


def class_names(folder: Path) -> list[str]:
    """The classes of a classifier's run.

    Raises:
        ValueError: the run has none, or the file is damaged.
    """
    names = read_asset(folder / CLASSES)
    if not isinstance(names, list) or not names:
        raise ValueError(f"{folder / CLASSES} must hold the names of classes; train it again.")
    return [str(name) for name in names]


def tokenizer_of(folder: Path) -> CaptionTokenizer:
    """The byte pairs of a run on captions.

    Raises:
        ValueError: the run has none, or the file is damaged.
    """
    from foveal.data.tokens import CaptionTokenizer

    return CaptionTokenizer.from_file(folder / TOKENIZER)


def read_asset(path: Path) -> Any:
    """The contents of a JSON file that a run must have.

    Raises:
        ValueError: it has none, or the file is damaged.
    """
    try:
        return read_json(path)
    except FileNotFoundError:
        raise ValueError(f"the run {path.parent} has no {path.name}; train it again.") from None
