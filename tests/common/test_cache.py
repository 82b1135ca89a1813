"""Places for what can be made again."""

import os
from pathlib import Path

import pytest

from foveal.common.cache import cache_folders

pytestmark = pytest.mark.skipif(not hasattr(os, "getuid"), reason="other systems, other owners")


@pytest.fixture
def home(tmp_path, monkeypatch):
    for name in ("FOVEAL_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    return tmp_path


def test_the_users_cache_comes_before_temporary_files(home):
    temporary = home / "tmp" / f"foveal-{os.getuid()}" / "native"
    assert cache_folders("native") == [home / ".cache" / "foveal" / "native", temporary]


def test_a_relative_cache_is_none(home, monkeypatch):
    """The convention says so; it would be another place in every working folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    assert cache_folders("native")[0] == home / ".cache" / "foveal" / "native"


def test_a_named_place_is_the_only_one(home, monkeypatch):
    monkeypatch.setenv("FOVEAL_CACHE", str(home / "mine"))
    assert cache_folders("native") == [home / "mine" / "native"]


def test_without_a_home_there_are_temporary_files(home, monkeypatch):
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", staticmethod(nobody))
    assert [folder.parent.parent.name for folder in cache_folders("native")] == ["tmp"]


def test_what_others_can_write_is_not_ours(home):
    """A library that is loaded from there would be theirs."""
    folder = home / ".cache" / "foveal"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    assert folder / "native" not in cache_folders("native")


def test_a_file_in_the_way_is_passed_over(home):
    (home / ".cache").write_text("")
    assert [folder.parent.parent.name for folder in cache_folders("native")] == ["tmp"]
