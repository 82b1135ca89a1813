"""data.transform in runs: trained with, resumed with, executed only where somebody typed it."""

import json
import shutil
import sys

import pytest

from foveal.cli import main

RECIPE = """
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
path = "data.npz"
size = 8
{transform}
[training]
steps = {steps}
batch_size = 4
device = "cpu"
checkpoint_every = 2
"""
OWN = """
import torch
open("executed", "a").write("x")
def shade(picture):
    return (picture.float() / 255 * torch.rand(()))
def bad(picture):
    return picture.float()
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Pictures, a recipe that names a function and one that does not, and its module."""
    import numpy as np

    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=pixels, label=np.arange(20) % 2)
    (tmp_path / "shady_pictures.py").write_text(OWN)
    named = 'transform = "shady_pictures:shade"'
    (tmp_path / "own.toml").write_text(RECIPE.format(transform=named, steps=4))
    (tmp_path / "plain.toml").write_text(RECIPE.format(transform="", steps=4))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "shady_pictures", raising=False)
    monkeypatch.setattr("foveal.recipes.run.write_run_report", lambda folder: None)
    return tmp_path


def forget():
    """As in a fresh process: nothing has been imported, nothing executed."""
    sys.modules.pop("shady_pictures", None)


def executed(home):
    return (home / "executed").exists()


def weights(folder):
    last = sorted((folder / "checkpoints").iterdir())[-1]
    return (last / "model.safetensors").read_bytes()


def test_a_run_goes_on_as_if_it_had_not_stopped(home, capsys):
    """The setting is kept with the run; a resumed run ends with the same weights, bit for bit."""
    assert main(["train", "own.toml", "--output", "whole"]) == 0
    shutil.copytree("whole", "parts")
    shutil.rmtree(sorted((home / "parts" / "checkpoints").iterdir())[-1])
    go_on = ["train", "own.toml", "--output", "parts", "--resume", "auto"]
    assert main(go_on) == 0
    assert weights(home / "parts") == weights(home / "whole")
    assert main(["train", "plain.toml", "--output", "plain"]) == 0
    assert weights(home / "plain") != weights(home / "whole")
    saved = json.loads((home / "parts" / "config.json").read_text())
    assert saved["data"]["transform"] == "shady_pictures:shade"
    assert main([*go_on, "--data.transform", "shady_pictures:bad"]) == 2
    assert "was started with another data.transform" in capsys.readouterr().err


def test_a_folder_from_elsewhere_executes_nothing(home, capsys):
    """It is scored and used without its code; it goes on only for whoever types the name."""
    assert main(["train", "own.toml", "--output", "mine", "--steps", "2"]) == 0
    shutil.copytree("mine", "copied")
    (home / "executed").unlink()
    forget()
    assert main(["evaluate", "copied"]) == 0
    assert not executed(home)
    for resume in (
        ["train", "--resume", "copied", "--steps", "3"],
        ["train", "plain.toml", "--output", "copied", "--resume", "auto", "--steps", "3"],
        ["train", "plain.toml", "--resume", "copied"],
    ):
        if resume[1] == "plain.toml":  # whose folder says that it is one of that recipe
            settings = json.loads((home / "copied" / "config.json").read_text())
            settings["recipe"] = "plain.toml"
            (home / "copied" / "config.json").write_text(json.dumps(settings))
        capsys.readouterr()
        assert main(resume) == 2
        said = capsys.readouterr().err
        assert "--data.transform shady_pictures:shade" in said
        assert said.count("\n") == 1
    assert not executed(home)
    typed = ["--data.transform", "shady_pictures:shade", "--steps", "3"]
    assert main(["train", "--resume", "copied", *typed]) == 0
    assert executed(home)


def test_the_stage_of_a_folder_from_elsewhere_executes_nothing(home, capsys):
    """A recipe that only the folder names is as strange as its own function."""
    from foveal.recipes.config import functions_of, load_recipe

    dalle = load_recipe("captions-dalle").to_dict()
    dalle["recipe"], dalle["data"]["vae"] = "captions-dalle", str(home / "vae.toml")
    text = 'task = "vae"\n[model]\nname = "VQVAE"\n[data]\ntransform = "shady_pictures:shade"\n'
    (home / "vae.toml").write_text(text + "[training]\nsteps = 1\n")
    (home / "strange").mkdir()
    (home / "strange" / "config.json").write_text(json.dumps(dalle))
    assert main(["train", "--resume", "strange"]) == 2
    assert "--data.transform shady_pictures:shade" in capsys.readouterr().err
    assert main(["train", "captions-dalle", "--resume", "strange"]) == 2
    assert functions_of(load_recipe("captions-dalle")) == set()
    assert not executed(home)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shady_pictures:shad", "did you mean 'shade'"),
        ("shady_picture:shade", "no module 'shady_picture'"),
        ("shady_pictures:bad", "floats from 0 to 1, got floats from"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_written(home, capsys, name, message):
    """Exit code 2, and no run folder."""
    assert main(["train", "plain.toml", "--output", "run", "--data.transform", name]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (home / "run").exists()


def test_tokens_of_pictures_take_none(home, capsys):
    """DALL-E's pictures become tokens once: a function on them would be without effect."""
    assert main(["train", "captions-dalle", "--data.transform", "shady_pictures:shade"]) == 2
    assert "set it in the recipe of the VAE" in capsys.readouterr().err
    assert not executed(home)
