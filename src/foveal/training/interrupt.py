"""Ctrl-C and SIGTERM as a wish to save and stop, not as an accident."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any


class Interrupted(Exception):  # noqa: N818 - an event, not an error
    """The run was asked to stop and has saved its state.

    Attributes:
        step: the step that was saved.
        folder: the run's folder.
    """

    def __init__(self, step: int, folder: Path) -> None:
        super().__init__(f"interrupted at step {step}; the state is saved under {folder}")
        self.step, self.folder = step, folder


class Interrupt:
    """Context in which the first Ctrl-C or SIGTERM only sets `requested`; a second one raises."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupt:
        # only the main thread may set handlers; elsewhere the caller keeps its own
        if threading.current_thread() is threading.main_thread():
            for name in (signal.SIGINT, signal.SIGTERM):
                self._previous[name] = signal.signal(name, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name, handler in self._previous.items():
            signal.signal(name, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
