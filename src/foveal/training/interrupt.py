"""Ctrl-C and SIGTERM as a wish to save and stop, not as an accident."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

_ECHO = 3.0


class Interrupted(Exception):  # noqa: N818 - an event, not an error
    """The run was asked to stop and has saved its state.

    Attributes:
        step: the step that was saved.
        folder: the run's folder.
        is_main: whether this is the process that speaks for all.
    """

    def __init__(self, step: int, folder: Path, is_main: bool = True) -> None:
        super().__init__(f"interrupted at step {step}; the state is saved under {folder}")
        self.step, self.folder, self.is_main = step, folder, is_main


class Interrupt:
    """Context in which the first Ctrl-C or SIGTERM only sets `requested`; a second one raises.

    Attributes:
        at_once: nothing is left to save: the first one raises KeyboardInterrupt too.
    """

    def __init__(self) -> None:
        self.requested = self.at_once = False
        # a launcher hands on the Ctrl-C that the terminal has sent to every process already
        self._deaf = _ECHO if "TORCHELASTIC_RUN_ID" in os.environ else 0.0
        self._heard_at = 0.0
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
        now = time.monotonic()
        if self.requested and now - self._heard_at < self._deaf:
            return
        if self.requested or self.at_once:
            raise KeyboardInterrupt
        self.requested, self._heard_at = True, now
