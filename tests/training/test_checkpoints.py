"""Checkpoints: whole or absent, damage found and named, nothing executed."""

import os
import warnings

import pytest
import torch
from torch import nn

from foveal.training import checkpoints
from foveal.training.checkpoints import CheckpointError, last_complete, save_checkpoint


def save(root, step, keep=3):
    torch.manual_seed(step)
    model = nn.Linear(3, 2)
    state = {"step": step, "tensor": torch.arange(step)}
    return save_checkpoint(root, step, model, state, {"a": 1}, keep=keep), model


def test_what_was_saved_comes_back(tmp_path):
    """Weights, state and settings return to the bit."""
    folder, model = save(tmp_path, 7)
    assert last_complete(tmp_path) == folder
    other = nn.Linear(3, 2)
    checkpoints.load_weights(other, folder)
    assert torch.equal(other.weight, model.weight)
    state = checkpoints.load_state(folder)
    assert state["step"] == 7
    assert torch.equal(state["tensor"], torch.arange(7))
    assert checkpoints.load_settings(folder) == {"a": 1}


def test_only_the_last_are_kept(tmp_path):
    """Older checkpoints go, the newest stay."""
    for step in (1, 2, 3, 4):
        save(tmp_path, step, keep=2)
    assert [f.name for f in checkpoints.checkpoints(tmp_path)] == [
        "step-00000003",
        "step-00000004",
    ]


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt", "run.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncated", "damaged", "missing", "empty"])
def test_damage_is_found_and_the_one_before_is_used(tmp_path, name, damage):
    """Whatever happens to whichever file, it is named and an earlier checkpoint serves."""
    good, _ = save(tmp_path, 1)
    bad, _ = save(tmp_path, 2)
    harm(bad / name, damage)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        checkpoints.check(bad)
    with pytest.warns(UserWarning, match="step-00000002.*Falling back"):
        assert last_complete(tmp_path) == good


def harm(path, damage):
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[:-5])
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        if path.name == "manifest.json":  # a flipped bit there may hit a digest, a size or a name
            path.write_bytes(content.replace(b'"', b"'"))


def test_nothing_whole_is_an_error_and_nothing_at_all_is_none(tmp_path):
    """An empty folder means a fresh start; only damaged checkpoints mean stop."""
    assert last_complete(tmp_path / "nowhere") is None
    folder, _ = save(tmp_path, 1)
    harm(folder / "state.pt", "truncated")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(
            CheckpointError, match=r"no checkpoint .* whole.*state\.pt is truncated"
        ):
            last_complete(tmp_path)


def test_a_damaged_later_one_is_cleared_away(tmp_path):
    """After falling back, the damaged checkpoint neither stays nor takes a place of the kept."""
    for step in (1, 2, 3):
        save(tmp_path, step)
    save(tmp_path, 2, keep=2)
    assert [f.name for f in checkpoints.checkpoints(tmp_path)] == [
        "step-00000001",
        "step-00000002",
    ]


def test_leftovers_of_a_kill_are_removed(tmp_path):
    """A half-written folder is never taken for a checkpoint and goes at the next look."""
    partial = tmp_path / ".step-00000009.1234.partial"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"half")
    folder, _ = save(tmp_path, 1)
    assert last_complete(tmp_path) == folder
    assert not partial.exists()


def test_a_state_that_would_execute_code_is_refused(tmp_path):
    """state.pt is read with weights_only, so a pickle cannot call anything."""
    folder, _ = save(tmp_path, 1)

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "hacked"),)

    torch.save(Evil(), folder / "state.pt")
    with pytest.raises(Exception, match=r"(?i)weights.?only"):
        checkpoints.load_state(folder)
    assert not (tmp_path / "hacked").exists()


def test_weights_of_another_model_are_named(tmp_path):
    """Shapes that do not fit are one line."""
    folder, _ = save(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"do not fit.*weight") as caught:
        checkpoints.load_weights(nn.Linear(4, 2), folder)
    assert "\n" not in str(caught.value)
