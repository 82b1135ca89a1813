"""Folders of checkpoints: complete or absent, checked when read.

A checkpoint is a folder `step-00001000`. Its `manifest.json` has size and SHA-256 of each file;
`run.json` is the full configuration. Weights and state are of one of two kinds: see
foveal.training.checkpoints for the files of one process, foveal.training.parts for those of many.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from foveal.common.files import read_json, remove_folder

MANIFEST, SETTINGS = "manifest.json", "run.json"
WEIGHTS, STATE = "model.safetensors", "state.pt"
PARTS = "state.json"
"""Stands in a checkpoint whose weights are in parts."""
_LOOKS = 5

ResultT = TypeVar("ResultT")


class CheckpointError(ValueError):
    """A checkpoint is not there, not complete, or does not fit."""


def checkpoints(root: Path) -> list[Path]:
    """All checkpoint folders, oldest first, unchecked."""
    found: list[Path] = []
    for _ in range(_LOOKS):
        named = [path for path in root.glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
        found = [path for path in named if path.is_dir()]
        if found:  # else a training may have put a new one in the place of the only one meanwhile
            break
    return sorted(found, key=step_of)


def step_of(folder: Path) -> int:
    """The step that a checkpoint was taken at."""
    return int(folder.name.removeprefix("step-"))


def prune(root: Path, step: int, keep: int) -> None:
    """After a checkpoint of a step: delete all but the last `keep`."""
    # a folder of a later step can only be a damaged one that the run was not resumed from
    earlier = [other for other in checkpoints(root) if step_of(other) <= step]
    for old in set(checkpoints(root)) - set(earlier[-keep:]):
        remove_folder(old)


def folder_of(root: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return root / f"step-{step:08d}"


def is_in_parts(folder: Path) -> bool:
    """Whether a checkpoint has its weights in parts, as processes that share them write it."""
    return (folder / PARTS).is_file()


def write_manifest(folder: Path, entries: Mapping[str, tuple[int, str]]) -> None:
    """The last file of a checkpoint; file name -> size and SHA-256."""
    (folder / MANIFEST).write_text(json.dumps(dict(entries), indent=2), encoding="utf-8")


def failure(root: Path, step: int, error: OSError) -> str:
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
    entries = read_manifest(folder)
    if PARTS in entries:
        _check_nothing_else(folder, entries)
    for name, (size, digest) in entries.items():
        file = folder / name
        try:
            found = file.stat().st_size if file.is_file() else None
            wrong = found == size and fingerprint(file)[1] != digest
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


def _check_nothing_else(folder: Path, entries: Mapping[str, tuple[int, str]]) -> None:
    """Raise CheckpointError for weights that the manifest does not know: they would be read."""
    there = (file.name for file in folder.glob(f"*{Path(WEIGHTS).suffix}"))
    strange = sorted(name for name in there if name not in entries)
    if strange:
        raise CheckpointError(
            f"the checkpoint {folder} holds {strange[0]}, which its {MANIFEST} does not list; "
            "use an earlier one."
        )


def read_manifest(folder: Path) -> dict[str, tuple[int, str]]:
    """File name -> size and SHA-256."""
    try:
        manifest = read_json(folder / MANIFEST)
        entries = {name: (int(entry[0]), str(entry[1])) for name, entry in manifest.items()}
    except (OSError, ValueError, AttributeError, LookupError, TypeError):
        raise CheckpointError(
            f"the checkpoint {folder} has no readable {MANIFEST}; it was not written to the end."
        ) from None
    wanted = (PARTS, SETTINGS) if PARTS in entries else (WEIGHTS, STATE, SETTINGS)
    missing = [name for name in wanted if name not in entries]
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


def load_settings(folder: Path) -> dict[str, Any]:
    """The configuration that a checkpoint was taken with.

    Raises:
        CheckpointError: it is damaged.
    """
    return read_table(folder / SETTINGS, "settings of a checkpoint are", "settings of a run")


def read_table(file: Path, damaged: str, holds: str) -> dict[str, Any]:
    """The table in a JSON file of a checkpoint.

    Args:
        damaged, holds: what to call it where it cannot be read, and where it is no table.

    Raises:
        CheckpointError: it is one of these.
    """
    try:
        table = read_json(file)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"the {damaged} damaged: {error}") from None
    if not isinstance(table, dict):
        raise CheckpointError(f"{file} does not hold the {holds}.")
    return table


@contextlib.contextmanager
def fitting(folder: Path) -> Iterator[None]:
    """Say of what lies in a state that it does not fit where it is put.

    Raises:
        CheckpointError: it does not.
    """
    try:
        yield
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"the state in {folder} does not fit this run: {error!r}."
        ) from error


def fingerprint(file: Path) -> tuple[int, str]:
    """Size and SHA-256 of a file."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return file.stat().st_size, digest
