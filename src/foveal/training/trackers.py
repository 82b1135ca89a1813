"""Accelerate's trackers of a run: TensorBoard, wandb, mlflow, trackio and what else it knows."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from foveal.common.files import read_json, write_text
from foveal.common.packages import need
from foveal.common.words import shorten, suggest

TENSORBOARD = "tensorboard"
FOLLOWED = "trackers.json"
"""In the folder of a run: what its trackers call it, so that a resumed run goes on there."""
PATIENCE = 3
"""Failures in a row after which a tracker is left out."""


def check_trackers(names: Sequence[str] | None) -> None:
    """Find what no tracker can be made of before anything is trained.

    Raises:
        ValueError: a name that Accelerate does not know.
        ModuleNotFoundError: the package of one is not installed.
    """
    if not names:
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS
    from accelerate.utils import LoggerType

    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            hint = suggest(name, LOGGER_TYPE_TO_CLASS)
            raise ValueError(
                f"training.trackers must name trackers of Accelerate, got {name!r}; {hint}"
            )
        is_own = name not in [str(one) for one in LoggerType]  # of `register_tracker_class`
        if not is_own and importlib.util.find_spec(name) is None:
            need(name, f"training.trackers with {name!r}")


class Trackers:
    """The trackers of a run. One that fails on the way does not take the training with it.

    A failure is a warning, and the numbers of that step are missing there (metrics.jsonl has them
    all); after `PATIENCE` failures in a row the tracker is left out.

    Args:
        names: as `TrainingConfig.trackers`.
        folder: of the run.
        step: the step that it goes on from.
        settings: the whole configuration, which each tracker is told once.

    Raises:
        ValueError: one of `names` cannot be started.
    """

    def __init__(
        self,
        names: Sequence[str] | None,
        folder: Path,
        step: int = 0,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._folder = folder
        self._running: dict[str, Any] = {}
        self._failures: dict[str, int] = {}
        for name in (TENSORBOARD,) if names is None else dict.fromkeys(names):
            if names is None and importlib.util.find_spec(name) is None:
                continue  # what nobody asked for need not be there
            try:
                self._running[name] = _start(name, folder, step, settings or {})
            except Exception as error:
                if names is None:
                    _warn(f"{name} cannot be started ({_told(error)}) and is left out")
                    continue
                self.close()
                raise ValueError(
                    f"training.trackers: {name} cannot be started: {_told(error)}"
                ) from error

    def log(self, step: int, values: dict[str, float]) -> None:
        """Hand named numbers to each of them."""
        self._leave_what_is_gone(step)
        for name, tracker in list(self._running.items()):
            try:
                tracker.log(values, step=step)
                self._failures[name] = 0
            except Exception as error:  # whatever a foreign package raises
                self._count(name, step, error)

    def close(self) -> None:
        """End them all."""
        self._leave_what_is_gone(None)
        for name, tracker in self._running.items():
            try:
                tracker.finish()
            except Exception as error:
                _warn(f"{name} cannot be closed ({_told(error)}); it may lack the last numbers")
        self._running.clear()

    def _leave_what_is_gone(self, step: int | None) -> None:
        """Forget TensorBoard where its folder was deleted: its thread would end in a traceback.

        Of a run whose whole folder is gone the trainer tells.
        """
        if TENSORBOARD not in self._running or (self._folder / TENSORBOARD).is_dir():
            return
        del self._running[TENSORBOARD]
        if step is not None and (self._folder / "config.json").exists():
            _warn(
                f"the folder of {TENSORBOARD} was deleted, and it is left out after step {step:,}"
            )

    def _count(self, name: str, step: int, error: Exception) -> None:
        failures = self._failures[name] = self._failures.get(name, 0) + 1
        if failures == 1:
            _warn(f"{name} failed at step {step:,} ({_told(error)}); the training goes on")
        if failures == PATIENCE:
            _warn(f"{name} failed {PATIENCE} times in a row and is left out after step {step:,}")
            tracker = self._running.pop(name)
            with contextlib.suppress(Exception):
                tracker.finish()


def _start(name: str, folder: Path, step: int, settings: Mapping[str, Any]) -> Any:
    """A tracker that has begun, or that goes on where the run was before."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    cls = LOGGER_TYPE_TO_CLASS[name]
    known = _followed(folder).get(name) if step else None
    place = (str(folder),) if cls.requires_logging_directory else ()
    tracker = cls(_project(name), *place, **_options(name, folder, step, known))
    begin = getattr(tracker, "start", None)  # older Accelerates start when they are made
    if begin is not None:
        begin()
    is_new = known is None and not (step and name in _RESUMED)
    if is_new:
        _follow(folder, name, tracker)
        _tell_settings(name, tracker, dict(_flat(settings)))
    return tracker


def _project(name: str) -> str:
    """The project of a tracker; WANDB_PROJECT and the like say otherwise."""
    if name == TENSORBOARD:
        return name  # the folder inside the run's
    return os.environ.get(f"{name.upper()}_PROJECT") or "foveal"


_RESUMED = {TENSORBOARD, "trackio", "dvclive"}
"""Go on by the folder or by the name of the run; others need what they once called it."""


def _options(name: str, folder: Path, step: int, known: str | None) -> dict[str, Any]:
    """What the package of a tracker is told at its start; the others keep their own ways."""
    title = folder.resolve().name
    if name == TENSORBOARD:  # what a killed process wrote of later steps is taken back
        return {"purge_step": step + 1} if step else {}
    if name == "wandb":
        again = {"id": known, "resume": "allow"} if known else {}
        return {"name": title, "dir": str(folder), **again}
    if name == "mlflow":
        return {"run_name": title, **({"run_id": known} if known else {})}
    if name == "trackio":
        return {"name": title, "resume": "allow" if step else "never"}
    if name == "dvclive":
        return {"dir": str(folder / name), "resume": bool(step)}
    return {}


def _follow(folder: Path, name: str, tracker: Any) -> None:
    """Note what a tracker calls this run, where it needs that to go on."""
    homes = {"wandb": "id", "mlflow": "info.run_id"}
    if name in homes:
        found = tracker.tracker
        for part in homes[name].split("."):
            found = getattr(found, part)
        noted = {**_followed(folder), name: str(found)}
        write_text(folder / FOLLOWED, json.dumps(noted, indent=2) + "\n")


def _followed(folder: Path) -> dict[str, str]:
    with contextlib.suppress(OSError, ValueError):
        found = read_json(folder / FOLLOWED)
        if isinstance(found, dict):
            return {name: one for name, one in found.items() if isinstance(one, str)}
    return {}


def _tell_settings(name: str, tracker: Any, values: dict[str, Any]) -> None:
    """Hand over the configuration as hyper-parameters."""
    if not values:
        return
    if name != TENSORBOARD:
        tracker.store_init_configuration(values)
        return
    # Accelerate would make two more folders, which TensorBoard takes for runs
    from torch.utils.tensorboard.summary import hparams

    for summary in hparams(values, {}):
        tracker.writer.file_writer.add_summary(summary)
    tracker.writer.flush()


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings as ("training.steps", 100); what is not set is left out."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, str | int | float):
            yield prefix + key, value
        elif value is not None:
            yield prefix + key, json.dumps(value)


def _told(error: Exception) -> str:
    return shorten(f"{type(error).__name__}: {error}", 200)


def _warn(message: str) -> None:
    warnings.warn(f"training.trackers: {message}; {_REST}", stacklevel=4)


_REST = "metrics.jsonl has every number"
