"""Where numbers go while a run is under way: metrics.jsonl and TensorBoard."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
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
        self._board: _Board | None = None
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
        try:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
        except OSError as error:
            raise OSError(
                f"{self._file.name} cannot be written: {error.strerror}. The last checkpoint is "
                "whole; make room, then go on with --resume auto."
            ) from error
        if self._board is not None:
            self._board.write(step, values)

    def close(self) -> None:
        """Close both; everything has been flushed, or has failed by name."""
        with contextlib.suppress(OSError):
            if self._file is not None:
                self._file.close()
        if self._board is not None:
            self._board.close()


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


class _Board:
    """A file of events for TensorBoard, written at once: its own writer does so in a thread.

    What cannot be written is left out: metrics.jsonl holds the same, and says what is wrong.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns() // 10**9:010d}.{socket.gethostname()}"
        self._file = (folder / f"{name}.{os.getpid()}.{time.time_ns() % 10**9}").open("wb")
        self._records = RecordWriter(self._file)
        self._add(file_version="brain.Event:2")
        if step:  # what a killed process wrote of later steps is taken back
            self._add(step=step + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, values: dict[str, float]) -> None:
        """Add named numbers at a step."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        entries = [Summary.Value(tag=name, simple_value=x) for name, x in values.items()]
        self._add(step=step, summary=Summary(value=entries))

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):
            self._file.close()

    def _add(self, **fields: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        with contextlib.suppress(OSError):
            self._records.write(Event(wall_time=time.time(), **fields).SerializeToString())
            self._file.flush()


def _tensorboard(folder: Path, step: int) -> _Board | None:
    """The board, or None where TensorBoard is not installed or cannot write."""
    with contextlib.suppress(ImportError, OSError):
        return _Board(folder, step)
    return None
