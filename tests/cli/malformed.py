"""What the tests of malformed input share: a picture, and how a command must refuse."""

import io
import os

from PIL import Image

from foveal.cli import main


def png(size=(8, 8), colour=(9, 9, 9)):
    """The bytes of a PNG of one colour."""
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "png")
    return stream.getvalue()


def tree(folder):
    """Every name below a folder, and the sizes of plain files."""
    found = {}
    for home, folders, files in os.walk(folder):
        for path in (os.path.join(home, name) for name in (*folders, *files)):
            size = os.lstat(path).st_size if os.path.isfile(path) else None
            found[os.path.relpath(path, folder)] = size
    return found


def refuse(capsys, work, arguments):
    """Run a command that must be refused; returns its one line."""
    before = tree(work)
    assert main([str(one) for one in arguments]) == 2, arguments
    said = capsys.readouterr()
    assert not said.out, arguments
    lines = said.err.splitlines()
    assert len(lines) == 1, said.err
    assert lines[0].startswith("foveal: ")
    assert 15 < len(lines[0]) <= 320
    assert "Traceback" not in lines[0]
    assert tree(work) == before
    return lines[0]
