"""Run folders: where runs live, how one is begun, found again and read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from torch import nn

from foveal.common import files
from foveal.common.inputs import reading
from foveal.recipes.config import config_from_dict
from foveal.recipes.kind import Run, find_kind
from foveal.recipes.settings import RunConfig
from foveal.training import checkpoints
from foveal.training.machine import pick_device

RUNS = Path("runs")
CONFIG = "config.json"
CHECKPOINTS = "checkpoints"
MODEL = "model"
"""Folder of a run with the model at its end, where its checkpoints are in parts."""


def choose_folder(config: RunConfig, output: str | None, resume: bool) -> Path:
    """The folder of a run that is about to start or to go on; creates nothing.

    Without `output`, a new folder under runs/, or the latest of the same recipe when resuming.

    Raises:
        ValueError: the folder holds a run already and `resume` was not asked for.
    """
    if output is None:
        latest = latest_folder(config.recipe)
        number = 0 if latest is None else _number(latest, Path(config.recipe).stem)
        if resume and latest is not None:
            return latest
        _check_parents(RUNS / "new")
        return RUNS / f"{Path(config.recipe).stem}-{number + 1:03d}"
    if not output:
        raise ValueError("output must name a folder, got output=''; leave it out for a new one.")
    folder = files.expanded(output)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output must be a folder, but {output!r} is a file; name another.")
    _check_parents(folder)
    begun = (folder / CONFIG).exists() or checkpoints.checkpoints(folder / CHECKPOINTS)
    if begun and not resume:
        raise ValueError(
            f"output={output!r} already holds a run; add --resume auto to go on with it, "
            "or name another folder."
        )
    if not begun:
        _check_free(folder, output)
    return folder


_OWN = {CHECKPOINTS, "pictures", "tensorboard"}


def _check_free(folder: Path, output: str) -> None:
    """Raise ValueError where a run would be strewn among files that are not its own."""
    try:
        there = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    except (
        OSError
    ):  # no such folder yet, or one that cannot be read, which is said when it is used
        return
    foreign = [name for name in there if name not in _OWN]
    if foreign:
        raise ValueError(
            f"output={output!r} must be a new or an empty folder, but it holds {foreign[0]!r}"
            f"{' and more' if len(foreign) > 1 else ''}; name another folder."
        )


def _check_parents(folder: Path) -> None:
    """Raise ValueError where a file stands in the way of a folder."""
    for parent in folder.parents:
        if parent.exists() and not parent.is_dir():
            raise ValueError(
                f"a run needs the folder {folder.parent}, but {parent} is a file; "
                "move it, or name another folder with --output."
            )


def latest_folder(recipe: str) -> Path | None:
    """The folder under runs/ with the largest number of those of a recipe, or None."""
    stem = Path(recipe).stem
    numbered = [folder for folder in RUNS.glob("*") if _number(folder, stem)]
    return max(numbered, key=lambda folder: _number(folder, stem), default=None)


def find_run(run: str) -> Path:
    """The folder of a run: a path, or 'latest' for the newest under runs/.

    Raises:
        ValueError: there is no run.
    """
    if run == "latest":
        runs = {file.parent: _time_of(file) for file in RUNS.glob(f"[!.]*/{CONFIG}")}
        if not runs:
            raise ValueError(f"there is no run under {RUNS}/; start one with: foveal train RECIPE")
        return max(sorted(runs), key=lambda folder: runs[folder])
    folder = files.expanded(run)
    if not (folder / CONFIG).is_file():
        why = f"it has no {CONFIG}" if folder.exists() else "it does not exist"
        raise ValueError(f"run={run!r} is not a run folder: {why}; name one, or use 'latest'.")
    return folder


def open_run(run: Run | Path | str) -> Run:
    """A run by its folder, or by what a command calls it; see `find_run`.

    Raises:
        ValueError: there is no such run, or its settings are damaged.
    """
    if isinstance(run, Run):
        return run
    folder = find_run(run) if isinstance(run, str) else run
    return Run(folder, load_config(folder))


def load_config(folder: Path) -> RunConfig:
    """The configuration of a run.

    Raises:
        ValueError: config.json is damaged, or no configuration.
    """
    return config_from_dict(read_settings(folder), where=str(folder / CONFIG))


def read_settings(folder: Path) -> dict[str, Any]:
    """The configuration of a run as it was written.

    Raises:
        ValueError: config.json is damaged, or no configuration.
    """
    path = folder / CONFIG
    try:
        values = files.read_json(path)
    except FileNotFoundError:
        raise ValueError(f"the run folder {folder} has no {CONFIG}; name another.") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold the settings of a run, got {values!r:.60}.")
    return values


def load_model(folder: Path, config: RunConfig) -> tuple[nn.Module, Path]:
    """The model of a run in evaluation mode, and the checkpoint that it was read from.

    A training may go on in the folder meanwhile; nothing there is changed.

    Raises:
        ValueError: the run has no whole checkpoint.
    """
    root = folder / CHECKPOINTS
    if not checkpoints.checkpoints(root):
        raise ValueError(f"the run {folder} has no checkpoint yet; train it first.")
    kind = find_kind(config.task)
    model = kind.build(config, **kind.read_assets(folder))

    def read(checkpoint: Path) -> Path:
        checkpoints.load_weights(model, checkpoint)
        return checkpoint

    last = checkpoints.read_last(root, read)
    if last is None:
        raise ValueError(f"the run {folder} has no checkpoint any more; train it again.")
    return model.eval(), last


def open_model(run: Run, device: str = "auto") -> tuple[Any, str]:
    """The model of a run in evaluation mode on a device, and the name of its checkpoint.

    Raises:
        ValueError: the run has no whole checkpoint, or one whose weights are no numbers; a device
            that is not there.
    """
    chosen = pick_device(device)
    with reading(f"the run {run.folder}"):
        model, checkpoint = load_model(run.folder, run.config)
        for name, value in model.state_dict().items():
            if value.is_floating_point() and not value.isfinite().all():
                raise ValueError(
                    f"the weights of {checkpoint} are damaged: {name} holds NaN or infinity; use "
                    "an earlier checkpoint, or train again with a lower learning rate."
                )
        return model.to(chosen), checkpoint.name


def read_json(path: Path) -> Any:
    """The contents of a JSON file, or None where there is no such file."""
    try:
        return files.read_json(path)
    except FileNotFoundError:
        return None


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file in one step."""
    files.write_text(path, json.dumps(value, indent=2) + "\n")


def _number(folder: Path, stem: str) -> int:
    """The number of a folder of runs, or 0."""
    tail = folder.name.removeprefix(stem + "-")
    named = folder.name.startswith(stem + "-") and re.fullmatch(r"[0-9]{1,9}", tail)
    return int(tail) if named else 0


def _time_of(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:  # deleted meanwhile
        return 0
