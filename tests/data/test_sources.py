"""Byte sources: what a path stands for, how it is split, and what is refused."""

import bz2
import gzip
import lzma
import os
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from foveal.data.sources import (
    Corpus,
    Span,
    corpus_to_score,
    open_corpus,
    standard_library_files,
)


def write(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def contents(corpus: Corpus) -> bytes:
    return corpus.read(0, len(corpus)).tobytes()


def test_the_tail_of_a_single_file_is_held_out(tmp_path):
    """A lone file gives its last tenth to validation, and nothing is lost or used twice."""
    data = bytes(range(200))
    train, valid = open_corpus(str(write(tmp_path, "a.bin", data)))
    assert contents(train) == data[:180]
    assert contents(valid) == data[180:]


def test_every_twentieth_file_is_held_out(tmp_path):
    """With enough files whole files are held out, in sorted order, empty and hidden ones aside."""
    for number in range(41):
        write(
            tmp_path, f"sub{number % 2}/{number:02d}.txt", b"" if number == 3 else b"%02d" % number
        )
    write(tmp_path, ".hidden/x.txt", b"hidden")
    train, valid = open_corpus(str(tmp_path))
    assert len(valid.spans) == 3
    assert len(train) + len(valid) == 80
    assert b"hi" not in contents(train) + contents(valid)
    assert not {s.path for s in train.spans} & {s.path for s in valid.spans}


def test_a_glob_reaches_into_subfolders(tmp_path):
    """A glob is a source too."""
    write(tmp_path, "a/b/c.py", b"x" * 50)
    write(tmp_path, "a/b/c.txt", b"y" * 50)
    train, valid = open_corpus(str(tmp_path / "**/*.py"))
    assert contents(train) + contents(valid) == b"x" * 50


@pytest.mark.parametrize("start", [0, 1, 4, 5, 9])
@pytest.mark.parametrize("length", [0, 1, 3, 6])
def test_reads_cross_the_borders_of_files(tmp_path, start, length):
    """A corpus reads as if its spans were one array, wherever the window lies."""
    first, second = write(tmp_path, "1", b"abcde"), write(tmp_path, "2", b"..fgh..")
    third = write(tmp_path, "3", b"ijklmnop")
    corpus = Corpus(
        "c", [Span(first, 0, 5), Span(second, 2, 5), Span(third, 0, 0), Span(third, 0, 8)]
    )
    assert len(corpus) == 16
    assert corpus.read(start, length).tobytes() == b"abcdefghijklmnop"[start : start + length]


def test_a_window_outside_is_refused(tmp_path):
    """Reading past the end is an error, not a short answer."""
    corpus = Corpus("c", [Span(write(tmp_path, "1", b"abc"), 0, 3)])
    with pytest.raises(ValueError, match="3 bytes"):
        corpus.read(2, 2)


def test_the_standard_library_is_the_default():
    """The embedded text is megabytes of Python, split by file, the same in every call."""
    files = standard_library_files()
    assert len(files) > 300
    assert not any("test" in file.parts for file in files)
    train, valid = open_corpus()
    assert len(train) > 15 * len(valid) > 1e6
    assert contents(valid).count(b"def ") > 100
    assert valid.checksum() == open_corpus()[1].checksum()


def test_what_is_no_part_of_the_library_is_not_walked_through(tmp_path, monkeypatch):
    """Packages, tests and tables stay out at any depth, unlisted; the rest is sorted."""
    kept = ["a.py", "b/__init__.py", "b/c/d.py", "b.py", "test.py"]
    left = ["site-packages/x/a.py", "b/test/a.py", "b/c/__pycache__/a.py", "b/a.txt", "tests/a.py"]
    for name in kept + left:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    listed, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(Path(path)) or scandir(path))
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    assert standard_library_files() == sorted(tmp_path / name for name in kept)
    assert sorted(listed) == [tmp_path, tmp_path / "b", tmp_path / "b" / "c"]


def test_files_are_mapped_and_not_loaded(tmp_path):
    """A file far larger than what is read of it costs no memory: it is sparse here, 1 TB long."""
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.truncate(1 << 40)
        file.seek(1 << 39)
        file.write(b"middle")
    train, _ = open_corpus(str(path))
    assert train.read(1 << 39, 6).tobytes() == b"middle"
    assert isinstance(train.read(0, 1), np.ndarray)


@pytest.mark.parametrize(
    ("name", "words"),
    [("missing.txt", "must exist"), ("*.nothing", "no file matches"), ("folder", "no files")],
)
def test_nothing_there_is_named(tmp_path, name, words):
    """A missing path, a glob without match and an empty folder each give one clear message."""
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=words) as caught:
        open_corpus(str(tmp_path / name))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_empty_files_are_named(tmp_path):
    """An empty file is refused, and so is a folder in which all are empty."""
    write(tmp_path, "x/empty.txt", b"")
    with pytest.raises(ValueError, match=r"file is empty.*empty\.txt"):
        open_corpus(str(tmp_path / "x/empty.txt"))
    write(tmp_path, "x/empty2.txt", b"")
    with pytest.raises(ValueError, match="2 files are all empty"):
        open_corpus(str(tmp_path / "x"))


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (("train.txt", "valid.txt", "test.txt"), "validation test"),
        (("Train.txt", "Dev.txt"), "validation validation"),
        (("TRAIN/a.txt", "Testing/a.txt"), "test test"),
        (("training/x/a.txt", "validation/a.txt", "test/a.txt"), "validation test"),
        (("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens"), "validation test"),
        (("train", "val"), "validation validation"),
        (("text8-train.txt", "text8-test.txt"), "test test"),
        (("train.txt", "valid.text", "test.raw"), "validation test"),
    ],
)
def test_parts_that_people_make(tmp_path, names, parts):
    """Folders and files of the usual names are trained on, watched and scored, each as meant."""
    for name in names:
        write(tmp_path, name, name.encode())
    train, valid = open_corpus(str(tmp_path))
    assert contents(train) == names[0].encode()
    watched, scored = parts.split()
    assert valid.name.endswith(f"{watched} part")
    assert contents(valid) == names[1].encode()
    test = corpus_to_score(str(tmp_path))
    assert test.name.endswith(f"{scored} part")
    assert contents(test) == names[-1].encode()
    assert contents(corpus_to_score("stdlib", data=str(tmp_path))) == names[-1].encode()


@pytest.mark.parametrize(
    "names", [("train.py", "test.py"), ("a/train.txt", "a/test.txt"), ("train.txt", "notes.txt")]
)
def test_what_only_looks_like_parts(tmp_path, names):
    """Programs called train.py, files deep below, and a part alone are one text with the rest."""
    for name in names:
        write(tmp_path, name, name.encode() * 10)
    train, valid = open_corpus(str(tmp_path))
    assert len(train) + len(valid) == sum(len(name) * 10 for name in names)
    whole = corpus_to_score("stdlib", data=str(tmp_path))
    assert whole.name == f"{tmp_path}, all of it"
    assert len(whole) == len(train) + len(valid)


def test_held_out_data_are_a_setting(tmp_path):
    """With `valid` all of the data is trained on; a run without a test part is scored on it."""
    a, b = write(tmp_path, "a.txt", b"a" * 100), write(tmp_path, "b.txt", b"b" * 7)
    train, valid = open_corpus(str(a), str(b))
    assert (contents(train), contents(valid)) == (b"a" * 100, b"b" * 7)
    assert contents(corpus_to_score(str(a), str(b))) == b"b" * 7
    assert contents(corpus_to_score(str(a))) == b"a" * 10
    assert contents(corpus_to_score(str(a), data=str(a))) == b"a" * 100


@pytest.mark.parametrize("path", ["", "*.txt", "**/*.txt", "sub", "link"])
def test_held_out_files_among_the_others_are_not_trained_on(tmp_path, path):
    """They may lie in the folder, match the pattern, or be named by a link."""
    for number in range(25):
        write(tmp_path, f"sub/{number}.txt", b"%02d." % number)
    (tmp_path / "link").symlink_to("sub")
    write(tmp_path, "sub/held.txt", b"held")
    where = tmp_path / ("sub" if "*" in path else "") / path
    train, valid = open_corpus(str(where), str(tmp_path / "link" / "held.txt"))
    assert contents(valid) == b"held"
    assert contents(train).count(b".") == 25
    assert b"held" not in contents(train)
    assert contents(corpus_to_score(str(where), str(tmp_path / "sub/held.txt"))) == b"held"


def test_held_out_data_are_not_all_the_data(tmp_path):
    """Nothing would be left to train on; of the standard library, what is held out is kept."""
    path = str(write(tmp_path, "a.txt", b"a" * 100))
    with pytest.raises(ValueError, match="holds out all that"):
        open_corpus(path, path)
    train, valid = open_corpus("stdlib", "stdlib")
    assert not {s.path for s in train.spans} & {s.path for s in valid.spans}


def test_only_texts_of_a_folder_are_read(tmp_path):
    """Pictures, archives, compiled files, tables and what has NUL bytes are counted by suffix."""
    write(tmp_path, "a.txt", b"text" * 5)
    write(tmp_path, "b", b"without a suffix")
    for name in ("1.png", "2.png", "x.zip", "m.pyc", "t.csv", "w.safetensors", "._a.txt"):
        write(tmp_path, name, b"\x89PNG....")
    write(tmp_path, "blob.xyz", b"ab\0cd")
    write(tmp_path, "disguised.txt", gzip.compress(b"packed"))
    with pytest.warns(UserWarning, match=r"left out of .*: 2 \*\.png \(1\.png \.\.\.\)") as told:
        train, valid = open_corpus(str(tmp_path))
    assert len(train) + len(valid) == 36
    for kind in ("1 *.zip", "1 *.pyc", "1 *.csv", "1 *.safetensors", "1 *.xyz", "1 *.txt"):
        assert kind in str(told[0].message)


@pytest.mark.parametrize(
    ("name", "raw", "words"),
    [
        ("a.zip", b"PK\x03\x04", "a .zip file and no text"),
        ("a.txt", b"PK\x03\x04", "a zip archive and no text"),
        ("a.txt", gzip.compress(b"x", mtime=0), "a gzip file and no text"),
        ("a.png", b"\x89PNG", "a .png file and no text"),
        ("a", b"\x7fELF\2", "a program and no text"),
        ("a.csv", b"a,b\n", "name the column"),
        ("a.jsonl", b"{}", "name the column"),
        ("a.txt.gz", gzip.compress(b"GIF89a", mtime=0), "a picture and no text"),
        ("a.txt.gz", b"no gzip", "damaged or not what its suffix says"),
        ("a.tgz", b"\x1f\x8b", "a .tgz file and no text"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path, name, raw, words):
    """A file that is asked for by name is never trained on as it lies when it is no text."""
    with pytest.raises(ValueError, match=words) as caught:
        open_corpus(str(write(tmp_path, name, raw * 30)))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_packed_and_marked_texts_are_read_as_utf8(tmp_path):
    """.gz, .bz2 and .xz, a byte order mark, UTF-16: the bytes are those of the text in UTF-8."""
    text = "naïve 中文\n" * 10
    for number, raw in enumerate((gzip.compress, bz2.compress, lzma.compress)):
        path = write(tmp_path, f"{number}.txt.{('gz', 'bz2', 'xz')[number]}", raw(text.encode()))
        assert contents(corpus_to_score("stdlib", data=str(path))) == text.encode()
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):
        path = write(tmp_path, f"{encoding}.txt", text.encode(encoding))
        assert contents(corpus_to_score("stdlib", data=str(path))) == text.encode()
        train, valid = open_corpus(str(path))
        assert contents(train) + contents(valid) == text.encode()
    whole = corpus_to_score("stdlib", data=str(tmp_path))
    assert contents(whole) == text.encode() * 6
    assert whole.read(0, 5).tobytes() == text.encode()[:5]


def test_columns_of_tables(tmp_path):
    """A column of one table, or of all in a folder; what is no table is left out then."""
    write(tmp_path, "a.jsonl", b'{"t": "one"}\n{"t": null}\n{"t": "two\\u2028"}\n')
    write(tmp_path, "b.csv", b't,n\n"x, y",1\n')
    write(tmp_path, "README.txt", b"not in a table")
    expected = "one\ntwo\u2028\nx, y\n".encode()
    with pytest.warns(UserWarning, match=r"1 \*\.txt"):
        assert contents(corpus_to_score("stdlib", column="t", data=str(tmp_path))) == expected
    with pytest.raises(ValueError, match=r"no column 'tt', it has 't', 'n'"):
        open_corpus(str(tmp_path / "b.csv"), column="tt")
    with pytest.raises(ValueError, match="is for tables"):
        open_corpus(str(tmp_path / "README.txt"), column="t")
    (tmp_path / "README.txt").unlink()
    with pytest.raises(ValueError, match=r"holds no text \(tables need --data\.column\).*\*\.csv"):
        open_corpus(str(tmp_path))


def _cut(path):
    os.truncate(path, 1000)


def _grow(path):
    with path.open("ab") as file:
        file.write(b"more")


def _write_over(path):
    with path.open("r+b") as file:
        file.write(b"other")
    os.utime(path, ns=(1, 1))


def _replace(path):
    other = path.with_suffix(".new")
    other.write_bytes(bytes(path.stat().st_size))
    other.replace(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_cut, "had 9,000 bytes and has 1,000 now"),
        (_grow, "had 9,000 bytes and has 9,004 now"),
        (_write_over, "was written to"),
        (_replace, "was replaced"),
        (Path.unlink, "cannot be read any more"),
    ],
    ids=["cut", "grown", "written", "replaced", "gone"],
)
def test_a_file_that_changes_is_named(tmp_path, change, words):
    """An error that names the file, before its first read and after: no signal, no wrong bytes."""
    path = write(tmp_path, "a.txt", b"0123456789" * 900)
    unread, _ = open_corpus(str(path))
    opened, _ = open_corpus(str(path))
    opened.read(0, 10)
    change(path)
    with pytest.raises(ValueError, match=rf"a\.txt {words}"):
        unread.read(5000, 10)
    if change in (_replace, Path.unlink):  # an open file goes on as it was
        assert opened.read(5000, 5).tobytes() == b"01234"
    else:
        with pytest.raises(ValueError, match=rf"a\.txt {words}"):
            opened.read(5000, 10)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without FIFOs")
def test_what_is_no_file_is_not_waited_for(tmp_path):
    """A FIFO, a device and a circle of links where a text belongs."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r"must be a file, but .* is no ordinary"):
        open_corpus(str(tmp_path / "pipe"))
    with pytest.raises(ValueError, match="must be a file"):
        open_corpus("/dev/zero")
    write(tmp_path, "sub/a.txt", b"x" * 20)
    (tmp_path / "sub" / "up").symlink_to(tmp_path)
    train, valid = open_corpus(str(tmp_path / "**" / "*.txt"))
    assert len(train) + len(valid) == 20
