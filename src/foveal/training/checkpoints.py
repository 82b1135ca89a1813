"""Checkpoints: complete or absent, checked when read, nothing in them is executed.

A checkpoint is a folder `step-00001000` with the model as `save_pretrained` writes it
(model.safetensors, config.json), `run.json` (the full configuration), `state.pt` (optimizer and
positions, read with weights_only=True) and `manifest.json` (size and SHA-256 of each file).
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from foveal.common.files import write_folder
from foveal.training.folders import (
    SETTINGS,
    STATE,
    WEIGHTS,
    CheckpointError,
    check,
    checkpoints,
    failure,
    fingerprint,
    fitting,
    folder_of,
    is_in_parts,
    last_complete,
    load_settings,
    prune,
    read_last,
    write_manifest,
)

__all__ = [
    "SETTINGS",
    "CheckpointError",
    "check",
    "checkpoints",
    "export_model",
    "fitting",
    "last_complete",
    "load_settings",
    "load_state",
    "load_weights",
    "read_last",
    "save_checkpoint",
]

_LITTLE = 1 << 20


def save_checkpoint(
    root: Path,
    step: int,
    model: nn.Module,
    state: dict[str, Any],
    settings: dict[str, Any],
    *,
    keep: int,
) -> Path:
    """Write a checkpoint in one step and then delete all but the last `keep`.

    Args:
        root: the folder of checkpoints; made if the folder above it is there.
        state: tensors, numbers, strings and containers of them.
        settings: the run's configuration, as JSON.

    Raises:
        OSError: it could not be written; those that were there are as they were.
    """
    folder = folder_of(root, step)
    try:
        root.mkdir(exist_ok=True)
        write_folder(folder, lambda target: _write(target, model, state, settings))
    except OSError as error:
        raise OSError(failure(root, step, error)) from error
    prune(root, step, keep)
    return folder


def _write(
    target: Path, model: nn.Module, state: dict[str, Any], settings: dict[str, Any]
) -> None:
    """Fill a folder with what makes a checkpoint."""
    try:
        _save_model(model, target)
        torch.save(state, target / STATE)
    except (RuntimeError, SafetensorError) as error:  # how these two put a failed write
        full = shutil.disk_usage(target).free < _LITTLE
        reason = "No space left on device" if full else str(error).splitlines()[0]
        raise OSError(errno.ENOSPC if full else errno.EIO, reason) from error
    (target / SETTINGS).write_text(json.dumps(settings, indent=2), encoding="utf-8")
    write_manifest(target, {file.name: fingerprint(file) for file in sorted(target.iterdir())})


def export_model(model: nn.Module, folder: Path) -> None:
    """Write a model for its users, in one step: model.safetensors and perhaps config.json."""
    write_folder(folder, lambda target: _save_model(model, target))


def load_weights(model: nn.Module, folder: Path) -> None:
    """Fill a model with a checkpoint's weights, of either kind.

    Raises:
        CheckpointError: they do not fit.
    """
    if is_in_parts(folder):
        from foveal.training.parts import read_weights  # loads torch.distributed.checkpoint

        read_weights(model, folder)
        return
    try:
        load_model(model, folder / WEIGHTS)
    except (RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"the weights of {folder} do not fit the model: {reason}") from None


def load_state(folder: Path) -> dict[str, Any]:
    """Optimizer and positions of a checkpoint, on the CPU.

    Raises:
        CheckpointError: it holds something else, or objects that reading would execute.
    """
    try:
        state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # of pickle, zip and torch, in many kinds
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else repr(error)
        raise CheckpointError(f"{folder / STATE} cannot be read: {reason}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{folder / STATE} does not hold the state of a training.")
    return state


def _save_model(model: nn.Module, folder: Path) -> None:
    saver: Callable[[Path], None] | None = getattr(model, "save_pretrained", None)
    if saver is not None:
        saver(folder)
    else:
        save_model(model, str(folder / WEIGHTS))
