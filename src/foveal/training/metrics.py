"""Where numbers go while a run is under way: metrics.jsonl, and the trackers of the run."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foveal.common.files import write_text
from foveal.training.trackers import Trackers

METRICS = "metrics.jsonl"


class MetricsLog:
    """Appends one JSON object a line, and hands the same numbers to the trackers.

    Args:
        folder: the run's folder.
        step: the step the run continues from; lines of later steps, written by a process that was
            killed before its next checkpoint, are dropped, since those steps are taken again.
        enabled: False on all processes but the first.
        trackers: as `TrainingConfig.trackers`.
        settings: the whole configuration, for the trackers.

    Raises:
        ValueError: a tracker that was asked for cannot be started.
    """

    def __init__(
        self,
        folder: Path,
        step: int = 0,
        enabled: bool = True,
        trackers: Sequence[str] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._file = None
        self._trackers: Trackers | None = None
        if not enabled:
            return
        path = folder / METRICS
        if path.exists():
            kept = [json.dumps(entry) + "\n" for entry in read_metrics(folder, step)]
            write_text(path, "".join(kept))
        self._file = path.open("a", encoding="utf-8")
        try:
            self._trackers = Trackers(trackers, folder, step, settings)
        except BaseException:
            self.close()
            raise

    def write(self, step: int, values: dict[str, float]) -> None:
        """Record named numbers at a step."""
        if self._file is None:
            return
        try:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
        except OSError as error:
            raise OSError(
                f"{self._file.name} cannot be written: {error.strerror}. The last checkpoint is "
                "whole; make room, then go on with --resume auto."
            ) from error
        if self._trackers is not None:
            self._trackers.log(step, values)

    def close(self) -> None:
        """Close all; everything has been flushed, or has failed by name."""
        with contextlib.suppress(OSError):
            if self._file is not None:
                self._file.close()
        if self._trackers is not None:
            self._trackers.close()


def read_metrics(folder: Path, last_step: int | None = None) -> list[dict[str, float]]:
    """The entries of metrics.jsonl, up to a step; a line that a crash cut off is left out."""
    path = folder / METRICS
    if not path.exists():
        return []
    if not path.is_file():  # opening a FIFO would wait for ever
        raise ValueError(f"{path} must be a file; move away what is there.")
    text = path.read_text(encoding="utf-8", errors="replace")
    entries = [entry for entry in map(_entry_of, text.splitlines()) if entry is not None]
    return [e for e in entries if last_step is None or e["step"] <= last_step]


def _entry_of(line: str) -> dict[str, float] | None:
    """The numbers of a line, or None where it is no entry."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or "step" not in entry:
        return None
    numbers = all(isinstance(value, int | float) for value in entry.values())
    return entry if numbers else None
