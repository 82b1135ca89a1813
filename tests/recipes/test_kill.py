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
def test_killed_runs_reach_the_same_weights(recipe, tmp_path):
    """After kills inside checkpoint writes and between steps, weights and optimizer are equal."""
    recipe.write_text(recipe.read_text().replace("steps = 24", "steps = 150"))
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
    moments, others = ours["optimizer"]["state"], theirs["optimizer"]["state"]
    assert moments.keys() == others.keys()
    for index, moment in moments.items():
        for name, value in moment.items():
            assert torch.equal(value, others[index][name]), (index, name)
