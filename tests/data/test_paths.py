"""Paths of data from the root on, and names that are none."""

import os

import pytest

from foveal.data.images import ImageDataConfig
from foveal.data.paths import absolute, with_absolute_paths


@pytest.mark.parametrize(
    "name", ["", "stdlib", "emoji", "listops", "hf:imdb", "hf-stream:cifar10", "/a/b"]
)
def test_names_stay(name):
    """What means the same everywhere is left alone."""
    assert absolute(name) == name


def test_paths_become_absolute(tmp_path, monkeypatch):
    """Files, globs, ranges, the user's folder, folders in a name; also through links and ".."."""
    monkeypatch.chdir(tmp_path)
    home = os.path.expanduser("~")
    assert absolute("a.txt") == str(tmp_path / "a.txt")
    assert absolute("./src/**/*.py") == str(tmp_path / "src" / "**" / "*.py")
    assert absolute("s-{000..009}.tar") == str(tmp_path / "s-{000..009}.tar")
    assert absolute("~/a") == os.path.join(home, "a")
    assert absolute("../a") == os.path.join(tmp_path, "..", "a")
    assert absolute("hf:imagefolder:b") == f"hf:imagefolder:{tmp_path / 'b'}"
    config = with_absolute_paths(ImageDataConfig(path="emoji", valid="c"))
    assert (config.path, config.valid) == ("emoji", str(tmp_path / "c"))
