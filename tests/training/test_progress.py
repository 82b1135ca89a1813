"""What a person sees: a bar on a terminal, quiet lines elsewhere."""

import io
import sys
import time

import pytest

from foveal.training import progress
from foveal.training.progress import clock, make_progress, showing, tracked, waiting


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


def test_work_shows_how_far_it_is_where_somebody_looks(monkeypatch):
    """Its parts come unchanged; outside of `showing` nothing is said, the output stays free."""
    now, err, out = [0.0], io.StringIO(), io.StringIO()
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setattr(sys, "stdout", out)
    assert list(tracked("abc")) == ["a", "b", "c"]
    with showing("scoring"):
        for part in tracked(range(50)):
            now[0] = float(part)
        assert list(tracked(iter("ab"), 2)) == ["a", "b"]
        assert list(tracked([])) == []
    lines = err.getvalue().splitlines()
    assert lines[0] == "scoring  22%  11 of 50  0:35 left"
    assert len(lines) == 4
    assert out.getvalue() == ""


def test_a_notebook_gets_a_bar_only_where_it_can_be_drawn(monkeypatch):
    """A cell's output is no terminal, and rich draws there with the help of widgets."""
    cell = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()
    for found, kind in ((None, progress._Lines), (object(), progress._Bar)):
        monkeypatch.setattr(progress.importlib.util, "find_spec", lambda name, f=found: f)
        assert type(make_progress("x", out=cell)) is kind


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


def test_work_of_unknown_length_is_shown_while_it_says_nothing(monkeypatch):
    """Its stage and the time so far, from beside it; on the error output alone."""
    err, out = io.StringIO(), io.StringIO()
    monkeypatch.setattr(progress, "_LINE_EVERY", 0.0)
    monkeypatch.setattr(progress, "_TOLD_EVERY", 0.01)
    monkeypatch.setattr(progress, "_SHORT", 0.0)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setattr(sys, "stdout", out)
    with waiting("exporting", ("tracing", "writing")) as tell:
        for stage, share in (("tracing", "   0%"), ("writing", "  50%"), ("more", "")):
            tell(stage)
            assert told_in_time(f"exporting{share}  {stage}, 0:00 so far", err)
    with waiting("reading"):
        assert told_in_time("reading  0:00 so far", err)
    told = err.getvalue()
    time.sleep(0.05)
    assert err.getvalue() == told
    with pytest.raises(KeyError), waiting("exporting", ()):  # an error passes, the teller ends
        raise KeyError
    assert out.getvalue() == ""
    told = err.getvalue()
    with waiting("reading", enabled=False):
        time.sleep(0.05)
    monkeypatch.setattr(progress, "_SHORT", 9.0)
    with waiting("reading"):  # done at once
        time.sleep(0.05)
    assert err.getvalue() == told


def told_in_time(line, stream):
    """Whether a line comes within some seconds."""
    until = time.monotonic() + 5
    while line not in stream.getvalue() and time.monotonic() < until:
        time.sleep(0.01)
    return line in stream.getvalue()
