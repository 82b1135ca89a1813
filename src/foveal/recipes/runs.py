"""Run folders: where runs live, how one is begun, found again and read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from foveal.common.files import remove_partials, write_text
from foveal.recipes.config import RunConfig, config_from_dict, first_difference
from foveal.recipes.tasks import build_task_model
from foveal.training import checkpoints

RUNS = Path("runs")
CONFIG = "config.json"
CHECKPOINTS = "checkpoints"


def choose_folder(config: RunConfig, output: str | None, resume: bool) -> Path:
    """The folder of a run that is about to start or to go on; creates nothing.

    Without `output`, a new folder under runs/, or the latest of the same recipe when resuming.

    Raises:
        ValueError: the folder holds a run already and `resume` was not asked for.
    """
    stem = Path(config.recipe).stem
    if output is None:
        number = max([0, *(_number(folder, stem) for folder in RUNS.glob(f"{stem}-*"))])
        return RUNS / f"{stem}-{max(1, number) if resume else number + 1:03d}"
    folder = Path(output).expanduser()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output must be a folder, but {output!r} is a file; name another.")
    if (folder / CONFIG).exists() and not resume:
        raise ValueError(
            f"output={output!r} already holds a run; add --resume auto to go on with it, "
            "or name another folder."
        )
    return folder


def begin(folder: Path, config: RunConfig) -> Path | None:
    """Make sure of the run folder and its config.json; returns the checkpoint to resume from.

    Raises:
        ValueError: the folder holds checkpoints of a run that trained differently.
    """
    last = checkpoints.last_complete(folder / CHECKPOINTS) if folder.exists() else None
    settings = config.to_dict()
    if last is not None:
        different = first_difference(checkpoints.load_settings(last), settings)
        if different is not None:
            raise ValueError(
                f"the run in {folder} was started with another {different}; "
                "resume with the same settings, or start a new run in another folder."
            )
    folder.mkdir(parents=True, exist_ok=True)
    remove_partials(folder)
    write_text(folder / CONFIG, json.dumps(settings, indent=2) + "\n")
    return last


def find_run(run: str) -> Path:
    """The folder of a run: a path, or 'latest' for the newest under runs/.

    Raises:
        ValueError: there is no run.
    """
    if run == "latest":
        runs = sorted(RUNS.glob(f"*/{CONFIG}"), key=lambda file: file.stat().st_mtime_ns)
        if not runs:
            raise ValueError(f"there is no run under {RUNS}/; start one with: foveal train RECIPE")
        return runs[-1].parent
    folder = Path(run).expanduser()
    if not (folder / CONFIG).is_file():
        why = f"it has no {CONFIG}" if folder.exists() else "it does not exist"
        raise ValueError(f"run={run!r} is not a run folder: {why}; name one, or use 'latest'.")
    return folder


def load_config(folder: Path) -> RunConfig:
    """The configuration of a run.

    Raises:
        ValueError: config.json is damaged.
    """
    path = folder / CONFIG
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from None
    return config_from_dict(values, where=str(path))


def load_model(folder: Path, config: RunConfig) -> tuple[nn.Module, Path]:
    """The model of a run in evaluation mode, and the checkpoint that it was read from.

    Raises:
        ValueError: the run has no whole checkpoint.
    """
    last = checkpoints.last_complete(folder / CHECKPOINTS)
    if last is None:
        raise ValueError(f"the run {folder} has no checkpoint yet; train it first.")
    model = build_task_model(config, folder)
    checkpoints.load_weights(model, last)
    return model.eval(), last


def read_json(path: Path) -> Any:
    """The contents of a JSON file, or None where there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file in one step."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def _number(folder: Path, stem: str) -> int:
    tail = folder.name.removeprefix(stem + "-")
    return int(tail) if tail.isdigit() else 0
