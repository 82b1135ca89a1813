"""Runs that commands are tried on, trained once."""

import inspect
import shutil

import pytest
from malformed import png

from foveal.cli import main

CLASSES = """
task = "images"
[model]
name = "HaloNet"
stem_kernel = 3
stem_stride = 2
stem_pool = false
stem_dim = 8
depths = [1]
dims = [8]
heads = [2]
strides = [1]
block_size = 2
halo_size = 1
[data]
path = "{data}"
size = 8
[training]
steps = 2
batch_size = 4
device = "cpu"
"""
CAPTIONS = """
task = "vae"
[model]
name = "DiscreteVAE"
num_tokens = 8
codebook_dim = 8
num_layers = 1
hidden_dim = 8
[data]
path = "{data}"
size = 8
[training]
steps = 2
batch_size = 2
device = "cpu"
"""


_SOURCES = {}


@pytest.fixture(autouse=True)
def sources_read_once(monkeypatch):
    """Help texts come from the source of our classes: a file is parsed once, not at each call."""
    find = inspect.findsource

    def known(object):
        if not inspect.isclass(object) or not object.__module__.startswith("foveal."):
            return find(object)
        if object not in _SOURCES:
            _SOURCES[object] = find(object)
        return _SOURCES[object]

    monkeypatch.setattr(inspect, "findsource", known)


@pytest.fixture(scope="session", autouse=True)
def soon(short_reports):
    """Runs of a second end as soon as they can."""


@pytest.fixture(scope="session")
def trained(tmp_path_factory, tiny_recipe):
    """A folder with a finished run of text and one of pictures."""
    home = tmp_path_factory.mktemp("trained")
    (home / "text.txt").write_bytes(b"the quick brown fox jumps over the lazy dog. " * 60)
    recipe = tiny_recipe.format(data=(home / "text.txt").as_posix())
    (home / "text.toml").write_text(recipe.replace("steps = 24", "steps = 2"))
    for name in ("cat", "dog"):
        (home / "pictures" / name).mkdir(parents=True)
        for number in range(6):
            (home / "pictures" / name / f"{number}.png").write_bytes(png())
    data = (home / "pictures").as_posix()
    (home / "pictures.toml").write_text(CLASSES.format(data=data))
    for name in ("text", "pictures"):
        assert (
            main(["train", str(home / f"{name}.toml"), "--output", str(home / f"{name}-run")]) == 0
        )
    return home


@pytest.fixture
def work(trained, tmp_path, monkeypatch):
    """A fresh folder to work in, with copies of the runs and the recipes."""
    monkeypatch.chdir(tmp_path)
    return laid_out(trained, tmp_path)


@pytest.fixture(scope="session")
def shown(trained, tmp_path_factory):
    """Such a folder for all the commands that change nothing."""
    return laid_out(trained, tmp_path_factory.mktemp("shown"))


@pytest.fixture
def looked_at(shown, monkeypatch):
    """That folder, to work in."""
    monkeypatch.chdir(shown)
    return shown


def laid_out(trained, folder):
    for name in ("text-run", "pictures-run"):
        shutil.copytree(trained / name, folder / name, copy_function=shutil.copyfile)
    for name in ("text.toml", "pictures.toml", "text.txt"):
        shutil.copyfile(trained / name, folder / name)
    (folder / "vae.toml").write_text(CAPTIONS.format(data="emoji"))
    (folder / "good.png").write_bytes(png())
    return folder
