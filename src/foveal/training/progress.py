"""What a person sees while a run is under way: a live bar, or quiet lines in a log."""

from __future__ import annotations

import importlib.util
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, TextIO, TypeVar

_LINE_EVERY = 10.0
_TOLD_EVERY = 0.5
_SHORT = 1.0  # seconds that nobody need be told of
_Part = TypeVar("_Part")


class Progress:
    """Shows how far a run has come; this one shows nothing."""

    def __enter__(self) -> Progress:
        """Start to show."""
        return self

    def __exit__(self, *details: object) -> None:
        """Stop, leaving the last state on the screen."""

    def update(self, fraction: float | None, text: str) -> None:
        """Show a fraction from 0 to 1, where anybody knows it, and a few words."""

    def say(self, line: str) -> None:
        """Print a line that stays."""


def make_progress(title: str, enabled: bool = True, out: TextIO | None = None) -> Progress:
    """A live bar on a terminal, a line every ten seconds elsewhere, nothing unless `enabled`."""
    out = sys.stdout if out is None else out
    if not enabled:
        return Progress()
    if _in_notebook(out):
        return _Bar(title, None)
    return _Bar(title, out) if out.isatty() else _Lines(title, out)


def _in_notebook(out: TextIO) -> bool:
    """Whether the output is a cell of a notebook in which rich can draw."""
    if not type(out).__module__.startswith("ipykernel"):
        return False
    return importlib.util.find_spec("ipywidgets") is not None


_shown: ContextVar[Progress | None] = ContextVar("shown", default=None)


@contextmanager
def showing(title: str) -> Iterator[None]:
    """Everything `tracked` inside shows how far it has come, on the error output."""
    with make_progress(title, out=sys.stderr) as bar:
        token = _shown.set(bar)
        try:
            yield
        finally:
            _shown.reset(token)


def tracked(parts: Sequence[_Part] | Iterable[_Part], total: int | None = None) -> Iterator[_Part]:
    """The parts of a piece of work, one after another, shown where `showing` is open."""
    bar, started = _shown.get(), time.monotonic()
    count = len(parts) if isinstance(parts, Sequence) else total
    for number, part in enumerate(parts):
        if bar is not None and count:
            done = number / count
            spent = time.monotonic() - started
            left = f"{clock(spent * (1 - done) / done)} left" if done else ""
            bar.update(min(done, 1.0), f"{number:,} of {count:,}  {left}")
        yield part


@contextmanager
def waiting(
    title: str, stages: Sequence[str] = (), enabled: bool = True
) -> Iterator[Callable[[str], None]]:
    """Work of which nobody knows how long it takes: its stage, and how long that has taken so far.

    Shown on the error output, again and again while the work itself says nothing; of work that is
    done at once nothing is.

    Yields:
        What is to be called with each stage as it begins, if it has any.
    """
    began, stage, ended = time.monotonic(), "", threading.Event()

    def begin(name: str) -> None:
        nonlocal began, stage
        began, stage = time.monotonic(), name

    def tell(stack: ExitStack) -> None:
        if ended.wait(_SHORT):
            return
        bar = stack.enter_context(make_progress(title, enabled, sys.stderr))
        while not ended.wait(_TOLD_EVERY):
            done = stages.index(stage) / len(stages) if stage in stages else None
            spent = f"{clock(time.monotonic() - began)} so far"
            bar.update(done, f"{stage}, {spent}" if stage else spent)

    with ExitStack() as stack:
        teller = threading.Thread(target=tell, args=(stack,), daemon=True)
        teller.start()
        try:
            yield begin
        finally:
            ended.set()
            teller.join()


class _Lines(Progress):
    """One line every ten seconds, for logs and pipes."""

    def __init__(self, title: str, out: TextIO) -> None:
        self._title, self._out = title, out
        self._next = time.monotonic() + _LINE_EVERY

    def update(self, fraction: float | None, text: str) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _LINE_EVERY
            done = "" if fraction is None else f" {fraction:4.0%}"
            self.say(f"{self._title}{done}  {text}")

    def say(self, line: str) -> None:
        print(line, file=self._out, flush=True)


class _Bar(Progress):
    """A bar that redraws itself; lines are printed above it."""

    def __init__(self, title: str, out: TextIO | None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[done]}  {task.fields[text]}"),
            console=Console(file=out),
        )
        self._task: Any = self._bar.add_task(title, total=None, text="", done="")

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._bar.stop()

    def update(self, fraction: float | None, text: str) -> None:
        if fraction is None:  # a bar that moves to and fro
            self._bar.update(self._task, total=None, done="", text=text)
        else:
            done = f"{fraction:4.0%}"
            self._bar.update(self._task, total=1.0, completed=fraction, done=done, text=text)

    def say(self, line: str) -> None:
        self._bar.console.print(line, highlight=False, markup=False)


def clock(seconds: float) -> str:
    """Seconds as 1:05 or 2:03:20."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
