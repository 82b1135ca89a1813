"""What a run folder keeps beside its weights, without which the model cannot be made again."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foveal.common.checks import as_int
from foveal.common.files import read_json, write_file, write_text
from foveal.data.tokens import CaptionTokenizer

FILES = {"classes": "classes.json", "num_tokens": "num_tokens.json", "tokenizer": "tokenizer.json"}
"""Names of a classifier's classes; size of a vocabulary; byte pairs of captions."""

TOKENIZER = FILES["tokenizer"]


def write_asset(name: str, value: Any, folder: Path) -> None:
    """Write an asset into a folder, as JSON."""
    if name == "tokenizer":
        value.save(folder / TOKENIZER)
    else:
        write_text(folder / FILES[name], json.dumps(value, indent=2) + "\n")


def read_asset(name: str, folder: Path) -> Any:
    """An asset of a run.

    Raises:
        ValueError: the run has none, or the file is damaged.
    """
    path = folder / FILES[name]
    if name == "tokenizer":
        return CaptionTokenizer.from_file(path)
    try:
        value = read_json(path)
    except FileNotFoundError:
        raise ValueError(f"the run {folder} has no {path.name}; train it again.") from None
    if name == "num_tokens":
        return as_int(str(path), value, 1)
    if not isinstance(value, list) or not value:
        raise ValueError(f"{path} must hold the names of classes; train it again.")
    return [str(one) for one in value]


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
