"""SIGKILL at any moment, then --resume auto: bit for bit the weights of an undisturbed run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from foveal.recipes.config import load_recipe
from foveal.recipes.run import train
from foveal.training.checkpoints import last_complete, load_state
from foveal.training.metrics import read_metrics

DRIVER = Path(__file__).with_name("killing.py")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_killed_runs_reach_the_same_weights(recipe, tmp_path, optimizer):
    """After kills inside checkpoint writes and between steps, weights and optimizer are equal."""
    changed = recipe.read_text().replace("steps = 24", "steps = 150")
    recipe.write_text(changed.replace("[optimizer]", f'[optimizer]\nname = "{optimizer}"'))
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    run = subprocess.run(
        [sys.executable, str(DRIVER), str(recipe), str(tmp_path / "killed")],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout.split()[-1]) >= 10
    folder, outcome = train(load_recipe(str(recipe)), str(tmp_path / "whole"))
    ours, theirs = (last_complete(f / "checkpoints") for f in (folder, tmp_path / "killed"))
    assert ours.name == theirs.name == "step-00000150"
    assert (ours / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()
    assert_equal(load_state(ours), load_state(theirs))
    losses = [
        [(entry["step"], entry["loss"]) for entry in read_metrics(f) if "loss" in entry]
        for f in (folder, tmp_path / "killed")
    ]
    assert [step for step, _ in losses[0]] == [step for step, _ in losses[1]]
    assert not list((tmp_path / "killed").rglob("*.partial"))
    assert outcome.step == 150


def assert_equal(ours, theirs):
    """Optimizer moments and the position in the data agree exactly."""
    assert ours["stream"] == theirs["stream"]
    assert len(ours["optimizers"]) == len(theirs["optimizers"])
    for one, other in zip(ours["optimizers"], theirs["optimizers"], strict=True):
        assert one["state"].keys() == other["state"].keys()
        for index, moments in one["state"].items():
            for name, value in moments.items():
                assert torch.equal(value, other["state"][index][name]), (index, name)
