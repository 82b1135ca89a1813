"""Walks: what systems put beside the data, links, and what is no file."""

import os
import socket

import pytest

from foveal.data.caption_sources import open_captions
from foveal.data.captions import PictureDataConfig
from foveal.data.image_sources import open_images
from foveal.data.images import ImageDataConfig
from foveal.data.sequence_sources import open_sequences
from foveal.data.sequences import SequenceDataConfig
from foveal.data.sources import open_corpus
from foveal.data.walk import LeftOut, printable, subfolders, walk

SYSTEM = [
    *("._a.png", ".DS_Store", "Thumbs.db", "desktop.ini", "__MACOSX/a.png", "@eaDir/a.png"),
    *("$RECYCLE.BIN/a.png", ".ipynb_checkpoints/a.txt", ".git/config", "sub/.hidden/a.txt"),
    *("__pycache__/a.pyc", "lost+found/a", "sub/THUMBS.DB"),
]


def put(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def names(root, left=None):
    left = LeftOut() if left is None else left
    return [path.relative_to(root).as_posix() for path in walk(root, left)]


@pytest.mark.parametrize("name", SYSTEM)
def test_hidden_and_system_files_are_passed_over(tmp_path, name):
    """In every folder, in silence: nobody put them there as data."""
    put(tmp_path, "sub/a.txt", name)
    left = LeftOut()
    assert names(tmp_path, left) == ["sub/a.txt"]
    assert not left
    assert "__MACOSX" not in [folder.name for folder in subfolders(tmp_path)]


def test_links_are_followed_but_not_in_circles(tmp_path):
    """Linked folders are data; links upwards, and a second way to a folder, are not."""
    put(tmp_path, "elsewhere/b.txt", "root/a.txt", "root/sub/c.txt")
    root = tmp_path / "root"
    (root / "more").symlink_to(tmp_path / "elsewhere")
    (root / "sub" / "up").symlink_to(root)
    (root / "sub" / "far up").symlink_to(tmp_path)
    (root / "self").symlink_to(root / "self")
    (tmp_path / "elsewhere" / "back").symlink_to(root)
    left = LeftOut()
    assert names(root, left) == ["a.txt", "more/b.txt", "sub/c.txt"]
    assert left.kinds() == "1 broken link (self)"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without FIFOs")
def test_what_is_no_file_is_counted_and_never_opened(tmp_path, monkeypatch):
    """FIFOs, sockets, devices, broken links, folders that may not be read."""
    put(tmp_path, "a.txt", "locked/b.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    (tmp_path / "gone.txt").symlink_to("nowhere")
    monkeypatch.chdir(tmp_path)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind("socket.txt")
    listening.close()
    real = os.scandir

    def refuse(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    left = LeftOut()
    assert names(tmp_path, left) == ["a.txt"]
    told = left.kinds()
    assert "3 FIFO, socket or device" in told
    assert "1 broken link (gone.txt)" in told
    assert "1 unreadable folder (locked)" in told


@pytest.mark.skipif(os.name == "nt", reason="names are bytes on POSIX systems alone")
def test_names_that_are_not_utf8(tmp_path):
    """They are read like others, and shown in a way that every terminal and file can hold."""
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9.txt")
    try:
        open(path, "wb").close()
    except OSError:
        pytest.skip("a file system that takes UTF-8 alone")
    (found,) = walk(tmp_path, LeftOut())
    assert printable(found.name) == r"caf\udce9.txt"
    assert printable("two\nlines\x1b[31m").isprintable()


def test_what_was_left_out_is_told_once_by_kind(tmp_path):
    """Every suffix has its number and an example; a long list is cut."""
    left = LeftOut()
    for number in range(12):
        left.add(f"*.k{number:02}", f"{number}.k", 12 - number)
    left.problems += [f"{number} is broken." for number in range(5)]
    with pytest.warns(UserWarning, match="skipped|left out") as told:
        left.warn("here", "picture")
    first, second = (str(one.message) for one in told)
    assert first.startswith("skipped 5 pictures of here: 0 is broken.")
    assert first.endswith("... and 2 more.")
    assert second.startswith("left out of here: 12 *.k00 (0.k ...), 11 *.k01")
    assert second.endswith("and 4 more kinds.")


def open_all(path):
    """Every kind of data as a recipe opens it."""
    return (
        lambda: open_corpus(path),
        lambda: open_images(ImageDataConfig(path=path)),
        lambda: open_captions(PictureDataConfig(path=path)),
        lambda: open_sequences(SequenceDataConfig(path=path)),
    )


@pytest.mark.parametrize("path", ["", "a" * 5000, "~nobody-here/a", "a" * 300 + "/b"])
def test_paths_that_nothing_can_have_are_refused(path):
    """In one short line for every kind of data."""
    archives = PictureDataConfig(path=path + "{0..9}.tar")
    for opened in (*open_all(path), lambda: open_captions(archives)):
        with pytest.raises(ValueError, match="data") as caught:
            opened()
        assert len(str(caught.value)) < 300


SYSTEMS_OWN = ["/", "//", "/usr/..", "/proc", "/proc/self", "/sys/kernel", "/proc/self/root"]


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="a system without /proc")
@pytest.mark.parametrize("path", SYSTEMS_OWN)
def test_the_whole_system_is_no_data(path, monkeypatch):
    """As of `--data $EMPTY/`: refused at once, before the disk is walked to its end."""
    monkeypatch.setattr(os, "scandir", pytest.fail)
    for opened in open_all(path):
        with pytest.raises(ValueError, match="is the system's own and holds no data; name their"):
            opened()


def test_files_behind_proc_are_data(tmp_path):
    """A file that was opened, as shells name it, is the file."""
    path = tmp_path / "a.txt"
    path.write_text("text " * 50)
    with path.open() as file:
        train, held_out = open_corpus(f"/dev/fd/{file.fileno()}")
    assert len(train) + len(held_out) == 250
