"""Whose fault an error is, in words; and lines that a terminal can show."""

import json
import os
from pathlib import Path

import pytest
import torch

from foveal.common.inputs import InputError, is_out_of_memory, reading, reason, require_place
from foveal.common.words import shorten


def fail(content):
    """What reading a file of another shape raises."""
    return content["model"]["name"].lower()


@pytest.mark.parametrize("content", [[], 3, None, {}, {"model": 3}, {"model": {"name": []}}])
def test_another_shape_is_the_fault_of_what_was_read(content):
    """TypeError, KeyError, AttributeError: one error that names the file and nothing of ours."""
    with (
        pytest.raises(InputError, match=r"^config.json cannot be used: it "),
        reading("config.json"),
    ):
        fail(content)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: b"\xff".decode(), "not UTF-8 text"),
        (lambda: json.loads("{"), "not valid JSON"),
        (lambda: json.loads("[" * 100_000), "nested too deeply"),
        (lambda: torch.empty(10**17), "more memory"),
        (lambda: torch.ones(3) @ torch.ones(4), "form that is expected"),
        (lambda: 1 // 0, "form that is expected"),
        (lambda: float(10**400), "too large"),
    ],
)
def test_errors_that_name_nothing_are_told_in_words(call, words):
    """Encodings, depth, memory, shapes and sizes."""
    with pytest.raises(InputError, match=words), reading("the run x"):
        call()


@pytest.mark.parametrize(
    "error", [ValueError("dim must be 3"), FileNotFoundError("x"), KeyboardInterrupt()]
)
def test_errors_written_for_people_pass_as_they_are(error):
    """So does the wish to stop."""
    with pytest.raises(type(error)) as caught, reading("x"):
        raise error
    assert caught.value is error


def test_memory_is_told_from_other_faults_of_torch():
    """On the CPU torch says so in words alone."""
    for size in (10**15, 1 << 62):
        with pytest.raises(RuntimeError) as caught:
            torch.empty(size, 8)
        assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
    assert reason(OSError(28, "No space left on device", "a")) == "a: no space left on device."


@pytest.mark.parametrize("text", ["short", "x" * 300, "x" * 301, "a\x1b[2J\u202eb" * 99, "\n\t a"])
def test_a_line_is_printable_and_keeps_both_ends(text):
    """What is cut out is the middle."""
    line = shorten(text, 300)
    assert line.isprintable()
    assert len(line) <= 300
    assert line[:1] == text.split()[0][:1]
    assert line[-1:] == text.split()[-1][-1:]


def test_where_nothing_can_be_written_is_said_before_the_work(tmp_path):
    """A folder that is not there or takes nothing, what is no file, names that are too long."""
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    wrong = {
        tmp_path / "none" / "a": (FileNotFoundError, "the folder of out=.* does not exist"),
        tmp_path / "folder": (IsADirectoryError, "out=.* is a folder; name a file in it"),
        tmp_path / "fifo": (FileExistsError, "out=.* is no plain file"),
        Path("/dev/null"): (FileExistsError, "out='/dev/null' is no plain file"),
        tmp_path / ("x" * 300): (OSError, "name too long"),
        tmp_path / ("x" * 240): (OSError, "nothing can be written there .*name too long"),
        "~nobody-here/a": (ValueError, "whom this machine does not know"),
    }
    if Path("/proc/self").is_dir():
        wrong["/proc/self/a"] = (OSError, "nothing can be written there.*'/proc/self/a'")
    for path, (kind, words) in wrong.items():
        with pytest.raises(kind, match=f"(?i){words}"):
            require_place(path, "out")
    kept = tmp_path / "kept"
    kept.write_text("kept")
    assert require_place(str(kept), "out") == kept
    assert require_place(tmp_path / "new", "out") == tmp_path / "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fifo", "folder", "kept"]
    assert kept.read_text() == "kept"
