"""The Makefile takes the first python3 of PATH, or a clearly faster one of the same version."""

import os
import sys

import fastest_python
import pytest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="shell scripts stand for interpreters")
REFUSES = "exit 1"


def says(version, seconds, name):
    return f"echo '(3, {version})|{seconds}|{name}'"


@pytest.mark.parametrize(
    ("scripts", "expected"),
    [
        ([says(11, 0.01, "a")], "a"),
        ([says(11, 0.01, "a"), says(11, 0.006, "b")], "b"),
        ([says(11, 0.01, "a"), says(11, 0.008, "b"), says(11, 0.006, "c")], "c"),
        ([says(11, 0.01, "a"), says(11, 0.009, "b")], "a"),
        ([says(11, 0.01, "a"), says(12, 0.005, "b")], "a"),
        ([REFUSES, says(12, 0.01, "b"), says(11, 0.005, "c")], "b"),
        ([REFUSES, None], None),
    ],
)
def test_which_is_taken(scripts, expected, tmp_path, monkeypatch, capsys):
    """Never another version than the first that can serve; one that cannot is passed over."""
    folders = [tmp_path / str(number) for number in range(len(scripts))]
    for folder, script in zip(folders, scripts, strict=True):
        folder.mkdir()
        if script is not None:
            (folder / "python3").write_text(f"#!/bin/sh\n{script}\n")
            (folder / "python3").chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join(["", *map(str, folders)]))
    if expected is None:
        with pytest.raises(SystemExit, match=r"3\.11"):
            fastest_python.main()
        return
    fastest_python.main()
    assert capsys.readouterr().out == f"{expected}\n"


def test_this_interpreter_is_tried():
    """It tells its version, a time, and where it is."""
    version, seconds, path = fastest_python.tried(sys.executable)
    assert version == str(sys.version_info[:2])
    assert 0 < seconds < 10
    assert os.path.samefile(path, sys.executable)
