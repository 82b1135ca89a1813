"""Checkpoints: complete or absent, checked when read, nothing in them is executed.

A checkpoint is a folder `step-00001000` with the model as `save_pretrained` writes it
(model.safetensors, config.json), `run.json` (the full configuration), `state.pt` (optimizer and
positions, read with weights_only=True) and `manifest.json` (size and SHA-256 of each file).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from foveal.common.files import read_json, remove_folder, write_folder

MANIFEST, WEIGHTS, STATE, SETTINGS = "manifest.json", "model.safetensors", "state.pt", "run.json"
_LITTLE = 1 << 20
_LOOKS = 5

ResultT = TypeVar("ResultT")


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
    """Write a checkpoint in one step and then delete all but the last `keep`.

    Args:
        root: the folder of checkpoints; made if the folder above it is there.
        state: tensors, numbers, strings and containers of them.
        settings: the run's configuration, as JSON.

    Raises:
        OSError: it could not be written; those that were there are as they were.
    """
    folder = root / f"step-{step:08d}"
    try:
        root.mkdir(exist_ok=True)
        write_folder(folder, lambda target: _write(target, model, state, settings))
    except OSError as error:
        raise OSError(_failure(root, step, error)) from error
    # a folder of a later step can only be a damaged one that the run was not resumed from
    earlier = [other for other in checkpoints(root) if _step_of(other) <= step]
    for old in set(checkpoints(root)) - set(earlier[-keep:]):
        remove_folder(old)
    return folder


def checkpoints(root: Path) -> list[Path]:
    """All checkpoint folders, oldest first, unchecked."""
    found: list[Path] = []
    for _ in range(_LOOKS):
        named = [path for path in root.glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
        found = [path for path in named if path.is_dir()]
        if found:  # else a training may have put a new one in the place of the only one meanwhile
            break
    return sorted(found, key=_step_of)


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


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
    manifest = {file.name: _fingerprint(file) for file in sorted(target.iterdir())}
    (target / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")


def _failure(root: Path, step: int, error: OSError) -> str:
    """What to tell somebody whose checkpoint could not be written."""
    what = f"the checkpoint of step {step:,} could not be written under {root}"
    if not root.parent.is_dir():
        return f"{what}: the folder of the run is gone."
    kept = checkpoints(root)
    last = f"the last one is {kept[-1].name}" if kept else "there is none yet"
    return (
        f"{what}: {error.strerror or error}; {last}. "
        "Make room or give access, then go on with --resume auto."
    )


def check(folder: Path) -> None:
    """Raise CheckpointError, naming the file and the fault, unless the checkpoint is whole."""
    for name, (size, digest) in _read_manifest(folder).items():
        file = folder / name
        try:
            found = file.stat().st_size if file.is_file() else None
            wrong = found == size and _fingerprint(file)[1] != digest
        except OSError as error:
            raise CheckpointError(
                f"the checkpoint file {file} cannot be read ({error.strerror}); "
                "use an earlier checkpoint."
            ) from None
        if found is None:
            raise CheckpointError(f"the checkpoint {folder} lacks {name}; use an earlier one.")
        if found != size:
            raise CheckpointError(
                f"the checkpoint file {file} is truncated: {found} bytes instead of {size}; "
                "use an earlier checkpoint."
            )
        if wrong:
            raise CheckpointError(
                f"the checkpoint file {file} is damaged (its checksum is wrong); "
                "use an earlier checkpoint."
            )


def _read_manifest(folder: Path) -> dict[str, tuple[int, str]]:
    """File name -> size and SHA-256."""
    try:
        manifest = read_json(folder / MANIFEST)
        entries = {name: (int(entry[0]), str(entry[1])) for name, entry in manifest.items()}
    except (OSError, ValueError, AttributeError, LookupError, TypeError):
        raise CheckpointError(
            f"the checkpoint {folder} has no readable {MANIFEST}; it was not written to the end."
        ) from None
    missing = [name for name in (WEIGHTS, STATE, SETTINGS) if name not in entries]
    if missing or any(Path(name).name != name for name in entries):
        what = f"does not list {missing[0]}" if missing else "lists files of other folders"
        raise CheckpointError(f"the {MANIFEST} of the checkpoint {folder} {what}; it is damaged.")
    return entries


def last_complete(root: Path) -> Path | None:
    """The newest checkpoint that is whole, or None; warns about those it passes over.

    Only looks: a training may go on beside it, and take away what it has found.

    Raises:
        CheckpointError: there are checkpoints, and every one is damaged.
    """
    damaged: dict[tuple[Path, int], CheckpointError] = {}
    left = True
    while left:
        left = False
        for folder in reversed(checkpoints(root)):
            before = _identity(folder)
            if (folder, before) in damaged:
                continue
            try:
                check(folder)
            except CheckpointError as error:
                if not before or _identity(folder) != before:  # a training has taken it away
                    left = True
                    break
                damaged[folder, before] = error
                continue
            for passed in damaged.values():
                warnings.warn(f"{passed} Falling back to the one before.", stacklevel=2)
            return folder
    if damaged:
        problem = list(damaged.values())[-1]
        raise CheckpointError(f"no checkpoint under {root} is whole; the last fault: {problem}")
    return None


def read_last(root: Path, read: Callable[[Path], ResultT]) -> ResultT | None:
    """What `read` makes of the newest whole checkpoint, or None where there is none.

    If a training beside it takes that checkpoint away meanwhile, the next one is read.
    """
    while (folder := last_complete(root)) is not None:
        before = _identity(folder)
        try:
            return read(folder)
        except (OSError, CheckpointError):
            if before and _identity(folder) == before:
                raise
    return None


def _identity(folder: Path) -> int:
    """Tells a folder from another one that has taken its name; 0 where there is none."""
    try:
        return folder.stat().st_ino
    except OSError:
        return 0


def load_weights(model: nn.Module, folder: Path) -> None:
    """Fill a model with a checkpoint's weights; CheckpointError if they do not fit."""
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


@contextlib.contextmanager
def fitting(folder: Path) -> Iterator[None]:
    """Say of what lies in a state that it does not fit where it is put.

    Raises:
        CheckpointError: it does not.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"the state in {folder} does not fit this run: {error!r}."
        ) from error


def load_settings(folder: Path) -> dict[str, Any]:
    """The configuration that a checkpoint was taken with.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        settings = read_json(folder / SETTINGS)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"the settings of a checkpoint are damaged: {error}") from None
    if not isinstance(settings, dict):
        raise CheckpointError(f"{folder / SETTINGS} does not hold the settings of a run.")
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
