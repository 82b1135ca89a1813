"""Checkpoints: complete or absent, checked when read, nothing in them is executed.

A checkpoint is a folder `step-00001000` with the model as `save_pretrained` writes it
(model.safetensors, config.json), `run.json` (the full configuration), `state.pt` (optimizer and
positions, read with weights_only=True) and `manifest.json` (size and SHA-256 of each file).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import nn

from foveal.common.files import remove_partials, write_folder

MANIFEST, WEIGHTS, STATE, SETTINGS = "manifest.json", "model.safetensors", "state.pt", "run.json"


class CheckpointError(ValueError):
    """A checkpoint is not there, not complete, or does not fit."""


def save_checkpoint(
    root: Path,
    step: int,
    model: nn.Module,
    state: dict[str, Any],
    settings: dict[str, Any],
    *,
    keep: int,
) -> Path:
    """Write a checkpoint in one step and delete all but the last `keep`.

    Args:
        root: the folder of checkpoints.
        state: tensors, numbers, strings and containers of them.
        settings: the run's configuration, as JSON.
    """
    folder = root / f"step-{step:08d}"

    def write(target: Path) -> None:
        _save_model(model, target)
        torch.save(state, target / STATE)
        (target / SETTINGS).write_text(json.dumps(settings, indent=2), encoding="utf-8")
        manifest = {file.name: _fingerprint(file) for file in sorted(target.iterdir())}
        (target / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")

    write_folder(folder, write)
    # a folder of a later step can only be a damaged one that the run was not resumed from
    earlier = [other for other in checkpoints(root) if other.name <= folder.name]
    for old in set(checkpoints(root)) - set(earlier[-keep:]):
        shutil.rmtree(old, ignore_errors=True)
    return folder


def checkpoints(root: Path) -> list[Path]:
    """All checkpoint folders, oldest first, unchecked."""
    return sorted(folder for folder in root.glob("step-*") if folder.is_dir())


def check(folder: Path) -> None:
    """Raise CheckpointError, naming the file and the fault, unless the checkpoint is whole."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        entries = {name: (int(entry[0]), str(entry[1])) for name, entry in manifest.items()}
    except (OSError, ValueError, AttributeError, LookupError, TypeError):
        raise CheckpointError(
            f"the checkpoint {folder} has no readable {MANIFEST}; it was not written to the end."
        ) from None
    for name, (size, digest) in entries.items():
        file = folder / name
        found = file.stat().st_size if file.is_file() else None
        if found is None:
            raise CheckpointError(f"the checkpoint {folder} lacks {name}; use an earlier one.")
        if found != size:
            raise CheckpointError(
                f"the checkpoint file {file} is truncated: {found} bytes instead of {size}; "
                "use an earlier checkpoint."
            )
        if _fingerprint(file)[1] != digest:
            raise CheckpointError(
                f"the checkpoint file {file} is damaged (its checksum is wrong); "
                "use an earlier checkpoint."
            )


def last_complete(root: Path) -> Path | None:
    """The newest checkpoint that is whole, or None; warns about those it passes over.

    Raises:
        CheckpointError: there are checkpoints, and every one is damaged.
    """
    remove_partials(root)
    problem: CheckpointError | None = None
    for folder in reversed(checkpoints(root)):
        try:
            check(folder)
        except CheckpointError as error:
            problem = error
            warnings.warn(f"{error} Falling back to the one before.", stacklevel=2)
            continue
        return folder
    if problem is not None:
        raise CheckpointError(f"no checkpoint under {root} is whole; the last fault: {problem}")
    return None


def load_weights(model: nn.Module, folder: Path) -> None:
    """Fill a model with a checkpoint's weights; CheckpointError if they do not fit."""
    try:
        load_model(model, folder / WEIGHTS)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"the weights of {folder} do not fit the model: {reason}") from None


def load_state(folder: Path) -> dict[str, Any]:
    """Optimizer and positions of a checkpoint, on the CPU."""
    state: dict[str, Any] = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    return state


def load_settings(folder: Path) -> dict[str, Any]:
    """The configuration that a checkpoint was taken with."""
    settings: dict[str, Any] = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    return settings


def _save_model(model: nn.Module, folder: Path) -> None:
    saver: Callable[[Path], None] | None = getattr(model, "save_pretrained", None)
    if saver is not None:
        saver(folder)
    else:
        save_model(model, str(folder / WEIGHTS))


def _fingerprint(file: Path) -> tuple[int, str]:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return file.stat().st_size, digest
