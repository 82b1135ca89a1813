"""Runs that train other models first: those scale with the run, resume with it, and fail early."""

import dataclasses
import json
import os
import signal
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from foveal.recipes.captions.stages import scale_budget
from foveal.recipes.config import load_recipe
from foveal.recipes.run import train
from foveal.recipes.runs import load_config, load_model
from foveal.recipes.vae.kind import VAE as VAE_KIND
from foveal.training.config import TrainingConfig
from foveal.training.interrupt import Interrupted

DATA = 'path = "{data}"\nsize = 8\n'
LAST = '[training]\nsteps = {steps}\nbatch_size = 4\nprecision = "float32"\ndevice = "cpu"\n'
VAE = (
    'task = "vae"\n[model]\nname = "VQVAE"\nnum_layers = 1\nnum_tokens = 8\ncodebook_dim = 4\n'
    "hidden_dim = 4\n[data]\n" + DATA + LAST
)
CLIP = (
    'task = "clip"\n[model]\nname = "CLIP"\ndim_text = 8\ndim_image = 8\ndim_latent = 8\n'
    "text_enc_depth = 1\ntext_heads = 1\nvisual_enc_depth = 1\nvisual_heads = 1\n"
    "visual_patch_size = 4\n[data]\ntext_length = 6\n" + DATA + LAST
)
DALLE = (
    'task = "captions"\n[model]\nname = "DALLE"\ndim = 8\ndepth = 1\nheads = 1\ndim_head = 8\n'
    '[data]\ntext_length = 6\nvae = "vae.toml"\nclip = "clip.toml"\n' + DATA + LAST
)


@pytest.fixture(autouse=True)
def brief(tmp_path, monkeypatch):
    """An empty folder; runs end without pictures, which take most of a short run's time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("foveal.recipes.run.write_run_report", lambda folder: None)
    monkeypatch.setattr("foveal.recipes.run.finish", lambda *details: None)


@pytest.fixture
def recipe(tmp_path):
    """The path of a recipe of 20 steps whose stages have 10 each."""
    from PIL import Image

    pytest.importorskip("tokenizers")
    (tmp_path / "pictures").mkdir()
    draw = np.random.default_rng(0)
    for number in range(12):
        pixels = draw.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"pictures/{number}.png")
        (tmp_path / f"pictures/{number}.txt").write_text(f"a picture, number {number}")
    for name, text, steps in (("vae", VAE, 10), ("clip", CLIP, 10), ("dalle", DALLE, 20)):
        (tmp_path / f"{name}.toml").write_text(text.format(data="pictures", steps=steps))
    return tmp_path / "dalle.toml"


def shortened(recipe, steps):
    config = load_recipe(str(recipe))
    return dataclasses.replace(config, training=dataclasses.replace(config.training, steps=steps))


def test_stages_scale_with_the_run_and_stay_with_it(recipe, tmp_path, monkeypatch):
    """A fifth of the steps, for the stages too; the run then needs none of the recipes."""
    folder, outcome = train(shortened(recipe, 4), "run")
    assert outcome.step == 4
    for stage in ("vae", "clip"):
        assert json.loads((folder / f"{stage}-training/result.json").read_text())["steps"] == 2
        (tmp_path / f"{stage}.toml").unlink()
    recipe.unlink()
    monkeypatch.chdir("/")
    run = tmp_path / folder
    assert load_config(run).data.vae == str(tmp_path / "vae.toml")
    model, last = load_model(run, load_config(run))
    assert last.name == "step-00000004"
    assert model.vae.num_tokens == 8
    config = load_config(run)
    longer = dataclasses.replace(config.training, steps=6)
    assert train(dataclasses.replace(config, training=longer), str(run), resume=True)[1].step == 6


def test_stages_are_runs_and_saved_models_too(recipe, tmp_path):
    """Their weights are read once they are needed; to size them up says nothing of them."""
    config = shortened(recipe, 2)
    first = train(config, "run")[0]
    for vae, clip in (("vae-training", "clip"), ("vae", "clip-training"), ("vae-training", "")):
        stages = {"vae": str(first / vae), "clip": clip and str(first / clip)}
        settings = dataclasses.replace(config, data=dataclasses.replace(config.data, **stages))
        narrow = dataclasses.replace(settings, model={**config.model, "dim_head": 4})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(ValueError, match="dim_head must be at least 6"):
                train(narrow, "none")
            folder = train(settings, f"{vae}{clip}")[0]
        weights = load_file(first / "vae/model.safetensors")
        assert all(
            torch.equal(load_file(folder / "vae/model.safetensors")[k], w)
            for k, w in weights.items()
        )
        assert (folder / "clip").exists() == bool(clip)


def test_stages_read_the_captions_that_the_run_reads(recipe, tmp_path):
    """In a column of a table that the recipes of the stages know nothing of."""
    lines = ["file_name,title"]
    for number in range(12):
        (tmp_path / f"pictures/{number}.txt").unlink()
        lines.append(f"{number}.png,picture number {number}")
    (tmp_path / "pictures/captions.csv").write_text("\n".join(lines))
    config = shortened(recipe, 2)
    data = dataclasses.replace(config.data, column="title")
    folder, outcome = train(dataclasses.replace(config, data=data), "run")
    assert outcome.step == 2
    for stage in ("vae", "clip"):
        assert load_config(folder / f"{stage}-training").data.column == "title"


def test_pictures_are_encoded_on_the_device_that_was_asked_for(recipe, monkeypatch):
    """On the CPU, whatever accelerator there is."""
    asked = []

    def pick(name):
        asked.append(name)
        return torch.device("cpu")

    monkeypatch.setattr("foveal.recipes.captions.kind.pick_device", pick)
    assert train(shortened(recipe, 2), "run")[1].step == 2
    assert asked == ["cpu"]


def test_a_run_that_is_stopped_in_a_stage_goes_on_there(recipe, tmp_path, monkeypatch):
    """Ctrl-C while the VAE trains saves it; resuming ends as a run that was not stopped."""
    whole, _ = train(shortened(recipe, 20), "whole")
    loss, calls = VAE_KIND.loss, []

    def signalling(self, task, model, batch):
        if model.training:
            calls.append(1)
            if len(calls) == 5:
                os.kill(os.getpid(), signal.SIGINT)
        return loss(self, task, model, batch)

    monkeypatch.setattr(VAE_KIND, "loss", signalling)
    with pytest.raises(Interrupted) as stop:
        train(shortened(recipe, 20), "stopped")
    assert str(stop.value.folder) == "stopped"
    assert (tmp_path / "stopped/vae-training/checkpoints/step-00000005").is_dir()
    stopped, _ = train(load_config(tmp_path / "stopped"), "stopped", resume=True)
    for place in ("checkpoints/step-00000020", "vae", "clip"):
        one, two = ((run / place / "model.safetensors").read_bytes() for run in (whole, stopped))
        assert one == two, place


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
        ("dalle", 'name = "DALLE"', 'name = "CLIP"', "needs a DALLE|unknown key 'dim'"),
        ("dalle", 'vae = "vae.toml"', 'vae = "clip.toml"', "must be a recipe of the task 'vae'"),
        ("dalle", 'clip = "clip.toml"', 'clip = "none.toml"', "recipe file must exist"),
        ("dalle", "dim = 8", 'dim = "wide"', "dim"),
        ("dalle", "dim = 8", "image_size = 9\ndim = 8", "image_size"),
        ("vae", "num_tokens = 8", "num_tokens = 0", "num_tokens"),
        ("vae", "batch_size = 4", "batch_size = 12", "at most the number of training examples, 1"),
        ("dalle", "batch_size = 4", "batch_size = 12", "at most the number of training examples"),
        ("clip", "steps = 10", "steps = 10\nkeep = 0", "training.keep must be at least 1, got 0"),
        ("clip", "visual_patch_size = 4", "visual_patch_size = 0", "visual_patch_size"),
        ("clip", "[model]", "[modl]", "unknown key 'modl'"),
        ("vae", '"VQVAE"', '"TransformerLM"', "num_layers|needs"),
    ],
)
def test_a_mistake_in_a_stage_is_found_before_anything_is_trained(
    recipe, tmp_path, name, old, new, words
):
    """Sizes, kinds and keys of all three recipes are checked first, and nothing is written."""
    path = tmp_path / f"{name}.toml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=words):
        train(load_recipe(str(recipe)), "run")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("run", "stage", "expected"),
    [
        ({"time_budget": 240.0}, {"time_budget": 120.0}, (None, 120.0)),
        ({"time_budget": 24.0}, {"time_budget": 120.0}, (None, 12.0)),
        ({"time_budget": 480.0}, {"time_budget": 60.0}, (None, 120.0)),
        ({"time_budget": 240.0, "steps": 10}, {"time_budget": 120.0}, (5, 120.0)),
        ({"steps": 10}, {"time_budget": 120.0}, (5, 120.0)),
        ({"steps": 1}, {"time_budget": 120.0}, (1, 120.0)),
        ({"time_budget": 60.0}, {"steps": 1000}, (250, None)),
    ],
)
def test_budgets_of_stages(run, stage, expected):
    """captions-dalle has 240 s; stages get the share of their budget that the run has of that."""
    config = load_recipe("captions-dalle")
    config = dataclasses.replace(config, training=TrainingConfig(**run))
    scaled = scale_budget(TrainingConfig(**stage), config)
    assert (scaled.steps, scaled.time_budget) == expected
    config = dataclasses.replace(config, recipe="made in Python")
    assert scale_budget(TrainingConfig(**stage), config) == TrainingConfig(**stage)
