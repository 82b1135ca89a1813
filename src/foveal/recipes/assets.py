"""What a run folder keeps beside its weights, without which the model cannot be made again."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveal.common.files import read_json, write_file

if TYPE_CHECKING:
    from foveal.data.tokens import CaptionTokenizer

CLASSES = "classes.json"
"""Names of a classifier's classes."""

VOCABULARY = "num_tokens.json"
"""Size of the vocabulary of a classifier of sequences."""

TOKENIZER = "tokenizer.json"
"""Byte pairs of the captions."""


def keep_assets(save: Callable[[Path], None], folder: Path, *, has_weights: bool) -> None:
    """Write what a run needs besides its weights.

    Args:
        save: writes it into a folder, as JSON.
        folder: of the run.
        has_weights: it goes on from a checkpoint, whose weights belong to what is there.

    Raises:
        ValueError: the run was begun with other classes or words, which its weights belong to.
    """
    with tempfile.TemporaryDirectory(prefix=".", suffix=".partial", dir=folder) as home:
        save(Path(home))
        for file in sorted(Path(home).iterdir()):
            kept = folder / file.name
            if has_weights and _is_readable(kept) and read_json(kept) != read_json(file):
                raise ValueError(
                    f"the data of the run in {folder} have changed since it began: {file.name} "
                    "would be another one; go on with the same data, or start a new run."
                )
            raw = file.read_bytes()
            write_file(kept, lambda partial, raw=raw: partial.write_bytes(raw))  # type: ignore[misc]


def _is_readable(path: Path) -> bool:
    try:
        read_json(path)
    except (OSError, ValueError):
        return False
    return True


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
