"""Checkpoints: whole or absent, damage found and named, nothing executed."""

import errno
import json
import os
import warnings

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from foveal.training import checkpoints
from foveal.training.checkpoints import CheckpointError, last_complete, save_checkpoint
from foveal.training.folders import fingerprint, write_manifest


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


def test_what_is_half_written_is_no_checkpoint_and_is_left_alone(tmp_path):
    """Who looks for a checkpoint does not know who is writing; only a run's owner tidies."""
    partial = tmp_path / ".step-00000009.1234-1.partial"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"half")
    for foreign in ("step-x", "step-", "step-7.old", "steps-00000009"):
        (tmp_path / foreign).mkdir()
    (tmp_path / "step-00000010").write_text("a file")
    (tmp_path / "step-00000011").symlink_to("step-00000011")
    folder, _ = save(tmp_path, 1)
    assert last_complete(tmp_path) == folder
    assert (partial / "model.safetensors").exists()


def test_steps_are_ordered_as_numbers(tmp_path):
    """The checkpoint after 99,999,999 is the last one."""
    for step in (99_999_999, 100_000_000, 5):
        (tmp_path / f"step-{step:08d}").mkdir()
    found = checkpoints.checkpoints(tmp_path)
    assert [folder.name[5:] for folder in found] == ["00000005", "99999999", "100000000"]


@pytest.mark.parametrize(
    "manifest",
    [
        *("{}", "[]", "null", "3", '"text"', '{"a": 1}', '{"model.safetensors": [1, "x"]}', "{"),
        *("[" * 3000, '{"../../x": [1, "x"]}', "NaN", '{"state.pt": []}', "\x00\x01"),
    ],
)
def test_a_manifest_of_another_shape_is_damage(tmp_path, manifest):
    """A checkpoint whose manifest vouches for nothing is passed over."""
    good, _ = save(tmp_path, 1)
    bad, _ = save(tmp_path, 2)
    (bad / "manifest.json").write_text(manifest)
    with pytest.warns(UserWarning, match="step-00000002.*Falling back"):
        assert last_complete(tmp_path) == good


def test_a_manifest_lists_no_files_of_other_folders(tmp_path):
    """Even one that is right about them."""
    bad, _ = save(tmp_path, 2)
    manifest = json.loads((bad / "manifest.json").read_text())
    manifest["../step-00000002/state.pt"] = manifest["state.pt"]
    (bad / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="lists files of other folders"):
        checkpoints.check(bad)


@pytest.mark.parametrize("name", ["shard-00003-x.safetensors", "x.safetensors", "unlisted"])
def test_parts_that_the_manifest_does_not_know_are_damage(tmp_path, name):
    """They would be read with the others: one put there, of any name, or one struck off."""
    folder = tmp_path / "step-00000001"
    folder.mkdir()
    for file in ("state.json", "run.json", "shard-00001-x.safetensors", "shard-2.safetensors"):
        (folder / file).write_bytes(b"{}")
    entries = {file.name: fingerprint(file) for file in folder.iterdir()}
    write_manifest(folder, entries)
    checkpoints.check(folder)
    if name == "unlisted":
        name = "shard-2.safetensors"
        write_manifest(folder, {k: v for k, v in entries.items() if k != name})
    (folder / name).write_bytes(b"{}")
    with pytest.raises(CheckpointError, match=f"{name}, which its manifest.json does not list"):
        checkpoints.check(folder)


@pytest.mark.parametrize("kind", ["folder", "fifo", "loop", "device"])
def test_something_else_in_the_place_of_a_file_is_damage(tmp_path, kind):
    """It is named, not waited for, and the checkpoint before serves."""
    good, _ = save(tmp_path, 1)
    bad, _ = save(tmp_path, 2)
    for name in ("model.safetensors", "manifest.json"):
        (bad / name).unlink(missing_ok=True)
        if kind == "folder":
            (bad / name).mkdir()
        elif kind == "fifo":
            os.mkfifo(bad / name)
        else:
            (bad / name).symlink_to(name if kind == "loop" else "/dev/zero")
        with pytest.warns(UserWarning, match="step-00000002.*Falling back"):
            assert last_complete(tmp_path) == good


def refuse(monkeypatch, where):
    """Let a write fail as on a full disk, in Python, torch, safetensors or the last rename."""

    def full(*details, **more):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def torchs(*details, **more):
        raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos\nC++")

    def safetensors(*details, **more):
        raise SafetensorError("Error while serializing: I/O error: No space left (os error 28)")

    name, how = {
        "state": ("torch.save", full),
        "torch": ("torch.save", torchs),
        "safetensors": ("foveal.training.checkpoints.save_model", safetensors),
        "manifest": ("foveal.training.checkpoints.fingerprint", full),
        "rename": ("os.replace", full),
        "sync": ("os.fsync", full),
    }[where]
    monkeypatch.setattr(name, how)


@pytest.mark.parametrize("keep", [1, 3])
@pytest.mark.parametrize("where", ["state", "torch", "safetensors", "manifest", "rename", "sync"])
def test_a_write_that_fails_leaves_the_checkpoints_as_they_were(
    tmp_path, monkeypatch, where, keep
):
    """One line with the fault, the step and what is left; nothing half-written stays."""
    (tmp_path / "checkpoints").mkdir()
    good, _ = save(tmp_path / "checkpoints", 1)
    with monkeypatch.context() as patched:
        refuse(patched, where)
        with pytest.raises(OSError, match=r"step 2 could not be .*step-00000001") as caught:
            save(tmp_path / "checkpoints", 2, keep)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path / "checkpoints") == [good.name]
    checkpoints.check(good)


def test_a_folder_that_is_gone_is_not_made_again(tmp_path):
    """A run folder that somebody deleted does not come back with a lone checkpoint in it."""
    with pytest.raises(OSError, match="the folder of the run is gone"):
        save(tmp_path / "gone" / "checkpoints", 1)
    assert os.listdir(tmp_path) == []


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
