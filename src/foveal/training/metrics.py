"""Where numbers go while a run is under way: metrics.jsonl and TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from foveal.common.files import write_text

METRICS = "metrics.jsonl"


class MetricsLog:
    """Appends one JSON object a line, and the same numbers to TensorBoard where it is installed.

    Args:
        folder: the run's folder.
        step: the step the run continues from; lines of later steps, written by a process that was
            killed before its next checkpoint, are dropped, since those steps are taken again.
        enabled: False on all processes but the first.
    """

    def __init__(self, folder: Path, step: int = 0, enabled: bool = True) -> None:
        self._file = None
        self._board: Any = None
        if not enabled:
            return
        path = folder / METRICS
        if path.exists():
            kept = [json.dumps(entry) + "\n" for entry in read_metrics(folder, step)]
            write_text(path, "".join(kept))
        self._file = path.open("a", encoding="utf-8")
        self._board = _tensorboard(folder / "tensorboard", step)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Record named numbers at a step."""
        if self._file is None:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close both."""
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()


def read_metrics(folder: Path, last_step: int | None = None) -> list[dict[str, float]]:
    """The entries of metrics.jsonl, up to a step; a line cut off by a crash is left out."""
    entries = []
    path = folder / METRICS
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if last_step is None or entry["step"] <= last_step:
            entries.append(entry)
    return entries


def _tensorboard(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)
