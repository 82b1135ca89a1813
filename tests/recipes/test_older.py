"""Runs that were begun when a batch was that of a process and micro-batch go on as they were."""

import json

import pytest
import torch

from foveal.cli import main
from foveal.recipes.older import config_to_go_on, with_whole_batch
from foveal.recipes.runs import load_config
from foveal.training.checkpoints import load_state
from foveal.training.folders import MANIFEST, fingerprint, last_complete


def as_written_before(folder, share, accumulate, processes):
    """Turn a run folder into what an earlier foveal would have left behind."""
    checkpoint = last_complete(folder / "checkpoints")
    for file in (folder / "config.json", checkpoint / "run.json"):
        values = json.loads(file.read_text())
        del values["parallel"]
        values["training"] |= {"batch_size": share, "accumulate": accumulate}
        file.write_text(json.dumps(values))
    state = load_state(checkpoint)
    state.pop("processes")
    if processes is not None:
        state["processes"] = processes
    torch.save(state, checkpoint / "state.pt")
    files = [file for file in sorted(checkpoint.iterdir()) if file.name != MANIFEST]
    (checkpoint / MANIFEST).write_text(json.dumps({f.name: fingerprint(f) for f in files}))


@pytest.fixture
def begun(recipe, tmp_path, monkeypatch):
    """A run of four steps with batches of 8, in the folder `run`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("foveal.recipes.run.write_run_report", lambda folder: None)
    options = ["--output", "run", "--training.batch-size", "8", "--steps", "4"]
    assert main(["train", str(recipe), *options]) == 0
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("share", "accumulate", "processes"), [(2, 2, 2), (4, 1, 2), (8, 1, None)]
)
def test_a_step_goes_on_to_see_the_same_examples(
    begun, recipe, capsys, share, accumulate, processes
):
    """Of 2 or 4 a process, whoever goes on: 8 a step, told in words where the number changes."""
    as_written_before(begun, share, accumulate, processes)
    capsys.readouterr()
    where = ["--output", "run", "--resume", "auto", "--steps", "6"]
    assert main(["train", str(recipe), *where]) == 0
    words = f"meant each of {processes} processes and {accumulate} micro-batches"
    assert (words in capsys.readouterr().err) == (share != 8)
    assert load_config(begun).training.batch_size == 8
    assert load_state(last_complete(begun / "checkpoints"))["stream"]["position"] == 6 * 8
    # what is written now means what it says
    assert config_to_go_on(begun).training.batch_size == 8
    assert main(["train", str(recipe), *where]) == 0
    assert load_config(begun).training.batch_size == 8


@pytest.mark.parametrize(
    "training", [{}, {"batch_size": "x"}, 3, {"batch_size": 4, "accumulate": None}]
)
def test_settings_that_are_damaged_are_left_to_their_reader(training):
    """Nothing is guessed about them here."""
    values = {"training": training}
    assert with_whole_batch(values, None) is values


def test_without_a_checkpoint_as_many_are_meant_as_there_are(monkeypatch):
    """Nothing was trained yet, so nobody knows more."""
    monkeypatch.setenv("WORLD_SIZE", "3")
    values = {"training": {"batch_size": 4, "accumulate": 2}}
    assert with_whole_batch(values, None)["training"]["batch_size"] == 24
    assert with_whole_batch({**values, "parallel": {}}, None)["training"]["batch_size"] == 4
