"""Files: the old or the new, never half; leftovers of the dead go; bad ones are named."""

import errno
import json
import os
import threading

import pytest

from foveal.common.files import (
    expanded,
    read_json,
    read_text,
    remove_folder,
    remove_partials,
    write_file,
    write_folder,
    write_text,
)
from foveal.common.inputs import reason, require_file

DEAD = 2**22 + 7
"""No process has this number: it is above the kernel's largest."""


def test_text_is_replaced_in_one_step(tmp_path):
    """A text file is the old or the new one, and nothing is left beside it."""
    write_text(tmp_path / "f", "one")
    write_text(tmp_path / "f", "two")
    assert (tmp_path / "f").read_text() == "two"
    assert os.listdir(tmp_path) == ["f"]


def test_an_error_while_writing_leaves_the_old(tmp_path):
    """A write that fails half-way changes nothing and leaves nothing behind."""
    write_folder(tmp_path / "x", lambda folder: (folder / "a").write_text("old") and None)
    write_text(tmp_path / "f", "old")

    def fail(path):
        (path / "a" if path.is_dir() else path).write_text("new")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_folder(tmp_path / "x", fail)
    with pytest.raises(OSError, match="disk full"):
        write_file(tmp_path / "f", fail)
    assert (tmp_path / "x" / "a").read_text() == (tmp_path / "f").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["f", "x"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_is_full_is_told_of_a_file(tmp_path, number):
    """The system names none: what could not be written is named, in a line."""

    def fail(path):
        raise OSError(number, os.strerror(number))

    for write, name in ((write_file, "a"), (write_folder, "b")):
        with pytest.raises(OSError, match=name) as caught:
            write(tmp_path / name, fail)
        assert reason(caught.value).startswith(f"{tmp_path / name}: ")
    with pytest.raises(OSError, match="other"):
        write_file(tmp_path / "a", lambda path: (tmp_path / "no/other").read_text())
    assert os.listdir(tmp_path) == []


def test_a_folder_is_replaced_and_removed_as_a_whole(tmp_path):
    """The new one takes the place of the old; a removed one leaves nothing."""
    for content in ("one", "two"):
        write_folder(tmp_path / "x", lambda f, c=content: (f / c).write_text("") and None)
    assert os.listdir(tmp_path / "x") == ["two"]
    remove_folder(tmp_path / "x")
    remove_folder(tmp_path / "x")
    assert os.listdir(tmp_path) == []


def test_a_folder_that_vanished_is_not_made_again(tmp_path):
    """Writing into a deleted folder is an error, not a new folder with one file in it."""
    with pytest.raises(FileNotFoundError):
        write_folder(tmp_path / "gone" / "x", lambda folder: None)
    with pytest.raises(FileNotFoundError):
        write_text(tmp_path / "gone" / "f", "text")
    assert os.listdir(tmp_path) == []


def test_leftovers_of_the_dead_go_and_the_living_stay(tmp_path):
    """Partial files of killed processes are removed, those of running ones are not."""
    gone = [f".a.{DEAD}-5.partial", f".b.{os.getpid()}-{10**12}.partial", ".foreign.partial"]
    gone.append(f".c.{os.getpid()}-{threading.get_native_id()}.partial")  # a reborn container's
    stay = [f".d.{os.getppid()}-1.partial", "e.partial", ".hidden", "f"]
    for name in gone + stay:
        (tmp_path / name).write_text("x")
    (tmp_path / f".folder.{DEAD}-5.partial").mkdir()
    (tmp_path / f".folder.{DEAD}-5.partial" / "x").write_text("x")
    (tmp_path / f".link.{DEAD}-5.partial").symlink_to(tmp_path.parent)
    remove_partials(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(stay)
    remove_partials(tmp_path, shared=False)
    assert sorted(os.listdir(tmp_path)) == sorted(stay[1:])
    assert tmp_path.parent.is_dir()


def test_a_partial_file_that_somebody_takes_is_written_again(tmp_path):
    """A clean-up on another machine may remove it; the write still succeeds."""
    taken = []

    def write(path):
        path.write_text("x")
        if len(taken) < 2:
            taken.append(path.unlink())

    write_file(tmp_path / "f", write)
    assert (tmp_path / "f").read_text() == "x"


def test_homes_are_found_or_named(tmp_path, monkeypatch):
    """Of a user who is not here: an error in words, of any command that takes a path."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded("~/a") == tmp_path / "a"
    assert expanded(tmp_path / "~" / "a") == tmp_path / "~" / "a"
    with pytest.raises(ValueError, match="'~nobody-here/a' begins with the home of a user"):
        expanded("~nobody-here/a")
    with pytest.raises(ValueError, match="the home of a user"):
        require_file("~nobody-here/a", "a file")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\xfe{\x00}\x00", "is not UTF-8 text"),
        (b'{"a": "caf\xe9"}', r"not UTF-8 text \(byte 10 is 0xe9\)"),
        (b"{", "is not valid JSON"),
        (b"", "is not valid JSON"),
        (b"[" * 100_000, "not valid JSON: it is nested too deeply"),
        (b"[" + b"9" * 10_000 + b"]", "not valid JSON"),
        (b"\x00" * 50, "not valid JSON"),
    ],
)
def test_bad_json_is_named(tmp_path, content, words):
    """One line that names the file and the fault."""
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        read_json(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_ordinary_file_is_named_and_not_waited_for(tmp_path):
    """Folders, FIFOs, devices, loops and huge files: an error at once."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "huge").touch()
    os.truncate(tmp_path / "huge", 1 << 40)
    with pytest.raises(ValueError, match="it is a folder"):
        read_text(tmp_path)
    for path in (tmp_path / "fifo", tmp_path / "fifo", type(tmp_path)("/dev/zero")):
        with pytest.raises(ValueError, match="it is no ordinary file"):
            read_text(path)
    with pytest.raises(ValueError, match="1,099,511,627,776 bytes, and a file of its kind"):
        read_text(tmp_path / "huge")
    with pytest.raises(OSError, match="symbolic links"):
        read_text(tmp_path / "loop")
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "missing")


def test_byte_order_marks_are_no_content(tmp_path):
    """Editors of other systems write one."""
    (tmp_path / "x").write_bytes(b"\xef\xbb\xbf" + json.dumps({"a": "\u00e9"}).encode())
    assert read_json(tmp_path / "x") == {"a": "\u00e9"}
