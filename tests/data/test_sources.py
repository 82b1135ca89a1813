"""Byte sources: what a path stands for, how it is split, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from foveal.data.sources import Corpus, Span, open_corpus, standard_library_files


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
