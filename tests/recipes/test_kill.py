"""SIGKILL at any moment, then --resume auto: bit for bit the weights of an undisturbed run."""

import os
from pathlib import Path

import forks
import pytest
import torch

from foveal.recipes.config import load_recipe
from foveal.recipes.run import train
from foveal.training.checkpoints import last_complete, load_state
from foveal.training.metrics import read_metrics

DRIVER = Path(__file__).with_name("killing.py")


OPTIMIZERS = ["adamw", "muon"]


@pytest.fixture(scope="module")
def killed(tmp_path_factory, tiny_recipe, after_dynamo):
    """{optimizer: (recipe, folder of the run that was killed, number of kills)}"""
    home = tmp_path_factory.mktemp("killed")
    (home / "text.txt").write_bytes(b"the quick brown fox jumps over the lazy dog. " * 60)
    text = tiny_recipe.format(data=(home / "text.txt").as_posix())
    text = text.replace("steps = 24", "steps = 90")
    pairs = [(home / f"{name}.toml", home / name) for name in OPTIMIZERS]
    for name, (recipe, _) in zip(OPTIMIZERS, pairs, strict=True):
        recipe.write_text(text.replace("[optimizer]", f'[optimizer]\nname = "{name}"'))
    found = forks.run(after_dynamo, DRIVER, *(path for pair in pairs for path in pair))
    assert [code for _, code in found] == [0, 0]
    kills = [count for count, _ in found]
    return {name: (*p, n) for name, p, n in zip(OPTIMIZERS, pairs, kills, strict=True)}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_killed_runs_reach_the_same_weights(killed, tmp_path, monkeypatch, optimizer):
    """After kills inside checkpoint writes and between steps, weights and optimizer are equal."""
    monkeypatch.setattr("foveal.recipes.run.write_run_report", lambda folder: None)
    recipe, stopped, kills = killed[optimizer]
    assert kills >= 7
    folder, outcome = train(load_recipe(str(recipe)), str(tmp_path / "whole"))
    ours, theirs = (last_complete(f / "checkpoints") for f in (folder, stopped))
    assert ours.name == theirs.name == "step-00000090"
    assert (ours / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()
    assert_equal(load_state(ours), load_state(theirs))
    losses = [
        [(entry["step"], entry["loss"]) for entry in read_metrics(f) if "loss" in entry]
        for f in (folder, stopped)
    ]
    assert [step for step, _ in losses[0]] == [step for step, _ in losses[1]]
    assert not list(stopped.rglob("*.partial"))
    assert outcome.step == 90


def assert_equal(ours, theirs):
    """Optimizer moments and the position in the data agree exactly."""
    assert ours["stream"] == theirs["stream"]
    assert len(ours["optimizers"]) == len(theirs["optimizers"])
    for one, other in zip(ours["optimizers"], theirs["optimizers"], strict=True):
        assert one["state"].keys() == other["state"].keys()
        for index, moments in one["state"].items():
            for name, value in moments.items():
                assert torch.equal(value, other["state"][index][name]), (index, name)
