"""What a person sees: a bar on a terminal, quiet lines elsewhere."""

import io
import sys

import pytest

from foveal.training import progress
from foveal.training.progress import clock, make_progress


class Terminal(io.StringIO):
    """A stream that claims to be watched."""

    def isatty(self):
        return True


def test_a_log_gets_a_plain_line_now_and_then(monkeypatch):
    """Outside a terminal there is a line every ten seconds, without control characters."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    with make_progress("recipe", out=out) as bar:
        for now[0] in range(25):
            bar.update(now[0] / 100, f"step {now[0]}")
        bar.say("a line")
    assert out.getvalue() == "recipe  10%  step 10\nrecipe  20%  step 20\na line\n"


def test_a_terminal_gets_a_bar(monkeypatch):
    """On a terminal a bar shows share and text, and lines can be printed above it."""
    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    with make_progress("recipe") as bar:
        bar.update(0.5, "loss 1.234")
        bar.say("a line [not markup]")
    assert "50%" in out.getvalue()
    assert "loss 1.234" in out.getvalue()
    assert "a line [not markup]" in out.getvalue()


def test_other_processes_are_silent():
    """Only the first process speaks."""
    out = io.StringIO()
    with make_progress("recipe", enabled=False, out=out) as bar:
        bar.update(0.5, "x")
        bar.say("y")
    assert out.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (65, "1:05"), (7400, "2:03:20")]
)
def test_times_are_read_as_clocks(seconds, text):
    """Seconds become minutes and hours."""
    assert clock(seconds) == text
