"""Text files: encodings and their marks, lines, packed files, and what is refused."""

import bz2
import gzip
import lzma
import os
import sys

import pytest

from foveal.data import text_files
from foveal.data.text_files import decode_text, lines, read_text

TEXT = "naïve 中文 🙂\nsecond\n"


@pytest.mark.parametrize(
    "encoding",
    ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be", "utf-32-be"],
)
def test_every_encoding_with_a_mark_gives_the_same_text(tmp_path, encoding):
    """UTF-8 with a mark or without, UTF-16 and UTF-32 of either byte order with one."""
    mark = "\ufeff" if encoding[-3:] in ("-le", "-be") else ""
    (tmp_path / "a.txt").write_bytes((mark + TEXT).encode(encoding))
    assert read_text(tmp_path / "a.txt") == TEXT


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ("one\ncafé".encode("latin-1"), r"line 2, column 4.*latin1"),
        (b"a\r\nb\r\nxx \x93quoted\x94", "line 3, column 4"),
        (b"\xff\xfea\x00\x00\xd8", "UTF-16-LE at line 1, column 2"),
        ("ab\nc".encode("utf-16-le"), "NUL character at line 1, column 2"),
        (b"x\ny\0z", "NUL character at line 2, column 2"),
        (b"GIF89a\x01\x00\x80", "line 1"),
    ],
    ids=["latin-1", "windows-1252", "half a pair", "no mark", "NUL", "picture"],
)
def test_other_encodings_are_refused_by_place(raw, words):
    """Nothing is replaced in silence: the file, the line and the column are named."""
    with pytest.raises(ValueError, match=rf"^a\.txt .*{words}") as caught:
        decode_text(raw, "a.txt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("odd", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e"])
def test_only_line_ends_end_lines(odd):
    """Characters at which str.splitlines breaks belong to the text."""
    assert lines(f"a{odd}b\r\nc\rd\n\ne") == [f"a{odd}b", "c", "d", "", "e"]
    assert lines("") == []
    assert lines("a\n") == ["a"]


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)],
)
def test_packed_text_is_unpacked(tmp_path, suffix, pack):
    """Whole, or in two pieces one after the other; a cut file is named, and so is a wrong one."""
    raw = TEXT.encode() * 50
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(pack(raw[:100]) + pack(raw[100:]))
    assert read_text(path) == TEXT * 50
    path.write_bytes(pack(raw)[:-5])
    with pytest.raises(ValueError, match=r"a\.txt.* is damaged"):
        read_text(path)
    path.write_bytes(raw)
    with pytest.raises(ValueError, match="damaged or not what its suffix says"):
        read_text(path)


def test_zstandard(tmp_path):
    """One frame or two, and a file that is cut, or is no .zst."""
    zstandard = pytest.importorskip("zstandard")
    raw, path = TEXT.encode() * 5000, tmp_path / "a.txt.zst"
    path.write_bytes(zstandard.compress(raw[:100]) + zstandard.compress(raw[100:]))
    assert read_text(path) == TEXT * 5000
    for damaged in (zstandard.compress(raw)[:-5], raw):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged or not what its suffix says"):
            read_text(path)


def test_a_bomb_is_refused(tmp_path, monkeypatch):
    """What unpacks to more than the limit never fills the memory."""
    monkeypatch.setattr(text_files, "MOST_UNPACKED", 1 << 20)
    (tmp_path / "bomb.bz2").write_bytes(bz2.compress(bytes(9 << 20)))
    with pytest.raises(ValueError, match="more than 1,048,576 bytes when read; unpack it"):
        read_text(tmp_path / "bomb.bz2")


def test_zstandard_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    """One line with both ways out."""
    for module in ("compression.zstd", "backports.zstd", "zstandard", "pyzstd"):
        monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / "a.txt.zst").write_bytes(b"\x28\xb5\x2f\xfd")
    words = r"pip install zstandard; or .*zstd -d a\.txt\.zst"
    with pytest.raises(ValueError, match=words) as told:
        read_text(tmp_path / "a.txt.zst")
    assert "damaged" not in str(told.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without FIFOs")
def test_only_files_are_opened(tmp_path):
    """A FIFO would wait for ever, a device has no end."""
    os.mkfifo(tmp_path / "pipe.txt")
    for path in (tmp_path / "pipe.txt", tmp_path, tmp_path / "none.txt"):
        with pytest.raises(ValueError, match="must be a file"):
            read_text(path)
