"""Several processes: one folder, one voice, one step at which all stop, nobody left waiting."""

import json
import os
import re
import shutil
from functools import partial
from pathlib import Path

import forks
import pytest
import ranks
import torch
from safetensors.torch import load_file

from foveal import patterns as P
from foveal.cli import main
from foveal.models import TransformerLM
from foveal.recipes.kind import KindTask
from foveal.recipes.runs import load_config, load_model
from foveal.recipes.score import evaluate
from foveal.training import OptimizerConfig, TrainingConfig, make_accelerator
from foveal.training.checkpoints import (
    CheckpointError,
    check,
    checkpoints,
    last_complete,
    load_weights,
)
from foveal.training.metrics import read_metrics
from foveal.training.moments import read_moments
from foveal.training.optimizers import make_optimizers
from foveal.training.weights import hold

DRIVER = Path(__file__).with_name("ranks.py")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(scope="module")
def played(tmp_path_factory, tiny_recipe, after_dynamo):
    """(folder, what each process of each scenario printed, and its exit code)"""
    folder = tmp_path_factory.mktemp("processes")
    text, recipe = folder / "text.txt", folder / "tiny.toml"
    text.write_bytes(b"the quick brown fox jumps over the lazy dog. " * 60)
    for number in range(40):
        part = folder / "texts" / ("valid" if number % 8 == 7 else "train")
        part.mkdir(parents=True, exist_ok=True)
        words = b"the quick brown fox jumps over the lazy dog. " * 3
        (part / f"{number}.txt").write_bytes(words[number : 10 + 3 * number])
    lines = tiny_recipe.format(data=text.as_posix())
    lines = lines.replace('device = "cpu"\n', "")  # "auto", as by default
    recipe.write_text(lines.replace("batch_size = 4", "batch_size = 12"))
    return folder, forks.run(after_dynamo, DRIVER, recipe)


def scenario(played, name):
    """(folder, results) of one scenario."""
    folder, results = played
    return folder / name, results[name]


def language(**options):
    """As in shards.py."""
    sizes = {"dim": 16, "depth": 2, "heads": 2, "dim_head": 8}
    return TransformerLM(pattern=P.SlidingWindow(8), **sizes, **options)


def words_of(result):
    """All that the processes complained of, without PyTorch's notes."""
    lines = "".join(result["err"]).splitlines()
    return [line for line in lines if line.startswith("foveal:") or "Traceback" in line]


def test_they_share_a_run_from_start_to_resume(played):
    """Three begin one folder, and go on from the checkpoint where it has lost its config.json."""
    folder, results = scenario(played, "start_and_go_on")
    for result, steps in zip(results, (6, 12), strict=True):
        assert set(result["codes"]) == {0}, result["err"]
        said = [f"trained {steps} steps" in out for out in result["out"]]
        assert said == [True, False, False]
    assert [p.name for p in (folder / "runs").iterdir()] == ["tiny-001"]
    assert last_complete(folder / "runs/tiny-001/checkpoints").name == "step-00000012"
    assert not list((folder / "runs").rglob("*.partial"))


@pytest.fixture(scope="module")
def exactly(played, tmp_path_factory):
    """(folder of a run that one process took up at step 10, that of an undisturbed one)"""
    folder, results = scenario(played, "elastic")
    for result, step in zip(results, (5, 10), strict=True):
        assert set(result["codes"]) == {130}, result["err"]
        assert f"interrupted at step {step};" in result["err"][0]
    recipe, whole = folder.parent / "tiny.toml", tmp_path_factory.mktemp("whole") / "run"
    options = [*map(str, ranks.ELASTIC), "--training.device", "cpu"]
    options += ["--data", str(recipe.with_name("texts"))]
    again = ["--output", str(folder / "run"), "--resume", "auto"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("foveal.recipes.run.write_run_report", lambda folder: None)
        patch.setattr("foveal.recipes.run.finish", lambda folder, task: None)
        patch.setattr(KindTask, "_set_up", KindTask._set_up)
        ranks.exact(KindTask)
        assert main(["train", str(recipe), *again, *options]) == 0
        assert main(["train", str(recipe), "--output", str(whole), *options]) == 0
    return folder / "run", whole


def test_any_number_of_processes_takes_the_same_steps(exactly):
    """4, 2 and 1 take five each of a batch of 8 packed rows: weights, losses, scores of one."""
    shared, whole = exactly
    one, two = (load_file(f / "checkpoints/step-00000015/model.safetensors") for f in exactly)
    assert {value.dtype for value in one.values()} == {torch.float64}
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-12, atol=1e-12)
    ours, theirs = read_metrics(shared), read_metrics(whole)
    assert [e["step"] for e in ours] == [e["step"] for e in theirs] == [5, 5, 10, 10, 15, 15]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys()
        for name in mine.keys() - {"speed", "elapsed"}:
            assert mine[name] == pytest.approx(other[name], rel=1e-9), name


def test_processes_that_share_rows_train_what_one_does(played, tmp_path, monkeypatch):
    """2 x 2 take three steps: weights, losses and scores of one process, in float64."""
    folder, (result,) = scenario(played, "shared_rows")
    assert result["codes"] == [0, 0, 0, 0], result["err"]
    monkeypatch.setattr("foveal.recipes.run.write_run_report", lambda folder: None)
    monkeypatch.setattr(KindTask, "_set_up", KindTask._set_up)
    ranks.exact(KindTask)
    options = ["--output", str(tmp_path / "one"), *map(str, ranks.SHARED)]
    options += ["--training.device", "cpu"]
    assert main(["train", str(folder.parent / "tiny.toml"), *options]) == 0
    homes = (tmp_path / "one", folder / "run")
    one, four = (load_file(f / "checkpoints/step-00000003/model.safetensors") for f in homes)
    for name, value in one.items():
        torch.testing.assert_close(four[name], value, rtol=1e-10, atol=1e-10)
    wanted, found = (read_metrics(home) for home in homes)
    assert [e["step"] for e in found] == [e["step"] for e in wanted]
    for mine, other in zip(found, wanted, strict=True):
        for name in other.keys() - {"speed", "elapsed"}:
            assert mine[name] == pytest.approx(other[name], rel=1e-9), name


def test_between_logs_they_wait_for_gradients_alone(exactly):
    """Every other exchange is at a log, but one after the first step tells how long steps take."""
    folder = exactly[0].parent
    for count, first in ((4, 0), (2, 5)):
        for rank in range(count):
            waited = json.loads((folder / f"waited-{count}-{rank}.json").read_text())
            steps = [step for step, _ in waited]
            assert set(steps) == {first + 1, first + 5}
            assert steps.count(first + 1) == 1


def test_two_processes_train_one_model(played, tmp_path, monkeypatch):
    """Under torchrun two processes share the work and agree with one that does it all."""
    for module in ("run", "score"):
        monkeypatch.setattr(f"foveal.recipes.{module}.write_run_report", lambda folder: None)
    folder, (result, scored) = scenario(played, "under_torchrun")
    assert result["codes"] == [0, 0], result["err"]
    assert "".join(result["out"]).count("trained 24 steps") == 1
    arguments = ["--output", str(tmp_path / "one")]
    arguments += ["--training.device", "cpu", "--model.dropout", "0"]
    assert main(["train", str(folder.parent / "tiny.toml"), *arguments]) == 0
    homes = (tmp_path / "one", folder / "two")
    one, two = (load_file(f / "checkpoints/step-00000024/model.safetensors") for f in homes)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4)
    scores = [json.loads((f / "result.json").read_text())["bits_per_byte"] for f in homes]
    assert scores[0] == pytest.approx(scores[1], rel=1e-3)
    # two score it together, and one of them says what one alone finds
    assert scored["codes"] == [0, 0], scored["err"]
    assert scored["out"][1] == ""
    told = json.loads(scored["out"][0])
    assert told == json.loads((folder / "two/evaluation.json").read_text())
    alone = evaluate(folder / "two", max_bytes=700).to_dict()
    told["bits_per_byte"] = pytest.approx(told["bits_per_byte"], rel=1e-12)
    assert {**told, "seconds": 0} == {**alone, "seconds": 0}


def test_a_mistake_is_told_once_and_stops_all(played):
    """Bad data, a folder that is taken, bad data of one process alone: 2 everywhere, one line."""
    folder, results = scenario(played, "mistakes")
    for result, words in zip(
        results,
        ("must exist", "already holds a run", "process 1 of 2: no data here"),
        strict=True,
    ):
        assert set(result["codes"]) == {2}, result
        assert len(words_of(result)) == 1, result["err"]
        assert words in words_of(result)[0]
    assert not (folder / "runs").exists()


def test_a_signal_to_all_stops_all_at_one_step(played):
    """SIGTERM to all, and again by the launcher: saved, 130."""
    folder, (result,) = scenario(played, "stops")
    assert set(result["codes"]) == {130}, result["err"]
    assert "".join(result["err"]).count("--resume auto") == 1
    step = result["err"][0].split("interrupted at step ")[1].split(";")[0].replace(",", "")
    check(folder / f"run/checkpoints/step-{int(step):08d}")
    assert "torchrun --nproc-per-node 2 -m foveal.cli train" in result["err"][0]


def test_a_full_disk_of_the_first_stops_all(played):
    """The others do not wait for ever, the line names the fault, the last checkpoint is whole."""
    folder, results = scenario(played, "full_disk")
    (result,) = results
    assert result["codes"] == [2, 2], result["err"]
    (line,) = words_of(result)
    assert "No space left on device; the last one is step-00000006" in line
    assert [f.name for f in checkpoints(folder / "run/checkpoints")] == ["step-00000006"]
    check(folder / "run/checkpoints/step-00000006")


def test_processes_that_share_the_weights_train_as_others(played):
    """Every family: gradients and weights as by hand to 1e-6, half of the state in each process.

    One of them computes alone from time to time. What cannot be shared out is named.
    """
    _, (families, *_) = scenario(played, "weights_in_parts")
    assert families["codes"] == [0, 0], families["err"]
    found = [[json.loads(line) for line in out.splitlines()] for out in families["out"]]
    assert len(found[0]) == (16 if os.environ.get("FOVEAL_LONG") else 8)
    for *rows, refusal in found:
        assert "ByParts" in refusal
        assert 'parallel.shard = "none"' in refusal
        for name, gradients, weights, alone, share in rows:
            assert max(gradients, weights, alone) <= 1e-6, name
            assert share <= 0.55 or name in ("own", "tiny"), name  # too small to be cut evenly
    for one, other in zip(*(rows[:-1] for rows in found), strict=True):
        assert one[4] + other[4] <= 1.04, one[0]


def test_what_processes_keep_in_parts_any_number_reads(played):
    """Weights and moments to the bit, without unpickling: by two, by four, and by none but this.

    And what one process has kept is read by those that share the weights.
    """
    folder, (_, kept, again, *_) = scenario(played, "weights_in_parts")
    for result in (kept, again):
        assert set(result["codes"]) == {0}, result["err"]
        whole = r"whole \d\d+ True\n" if result is kept else ""
        for out in result["out"]:
            assert re.fullmatch(rf"kept 2 3 \d\d+ True\n{whole}", out)
    expected = torch.load(folder / "expected.pt")
    model = language(num_tokens=41, tie_embeddings=True)
    make = partial(make_optimizers, config=OptimizerConfig(), device=torch.device("cpu"))
    weights = hold(model, make, make_accelerator(TrainingConfig(device="cpu")), "fsdp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pickle.load", None)
        patch.setattr("pickle.Unpickler", None)
        state = weights.load(folder / "kept/step-00000002")
    found = dict(model.state_dict())
    for name, moments in read_moments(model, weights.optimizers).items():
        found |= {f"{name} {kind}": value for kind, value in moments.items()}
    assert state["stream"] == {"position": 3}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    other = language(num_tokens=42, tie_embeddings=True)
    with pytest.raises(CheckpointError, match=r"token_emb.weight has shape \(41, 16\), expected"):
        load_weights(other, folder / "kept/step-00000002")


@pytest.mark.parametrize("damage", ["truncated", "missing", "flipped"])
@pytest.mark.parametrize("name", ["shard-00002", "shard-00001", "state.json", "run.json"])
def test_a_damaged_part_is_named_and_the_one_before_is_used(played, tmp_path, name, damage):
    """Whatever happens to whichever part."""
    folder, _ = scenario(played, "weights_in_parts")
    shutil.copytree(folder / "kept", tmp_path / "kept")
    (file,) = (tmp_path / "kept/step-00000002").glob(f"{name}*")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content[:-5] if damage == "truncated" else content)
    if damage == "missing":
        file.unlink()
    with pytest.warns(UserWarning, match=f"{file.name}.*Falling back"):
        assert last_complete(tmp_path / "kept").name == "step-00000001"


def test_parts_that_cannot_be_written_leave_the_ones_before(played):
    """A full disk of the second process is told by the first; its death leaves nothing half."""
    folder, (*_, spoilt, _) = scenario(played, "weights_in_parts")
    assert spoilt["codes"][1] == -9
    assert spoilt["codes"][0] != 0
    kind, words, left = spoilt["out"][0].strip().split("|")
    assert kind == "OSError"
    assert "step 2 could not be written" in words
    assert "No space left on device (process 1); the last one is step-00000001" in words
    assert left == "['step-00000001']"
    assert spoilt["out"][1].startswith("StoppedElsewhereError|")
    assert last_complete(folder / "spoilt").name == "step-00000001"


def test_a_run_with_its_weights_in_parts_is_a_run(played, monkeypatch, capsys):
    """It ends with a model for users; one process scores it, and goes on with it."""
    folder, (*_, run) = scenario(played, "weights_in_parts")
    assert run["codes"] == [0, 0], run["err"]
    model = TransformerLM.from_pretrained(folder / "run/model")
    other, _ = load_model(folder / "run", load_config(folder / "run"))
    for name, value in other.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    last = last_complete(folder / "run/checkpoints")
    with pytest.raises(FileNotFoundError, match=r"checkpoint in parts.*folder model"):
        TransformerLM.from_pretrained(last)
    monkeypatch.setattr("foveal.recipes.run.write_run_report", lambda folder: None)
    assert main(["evaluate", str(folder / "run"), "--device", "cpu"]) == 0
    assert last.name in capsys.readouterr().out
    more = ["--output", str(folder / "run"), "--resume", "auto", "--steps", "14"]
    more += ["--training.device", "cpu", "--model.dropout", "0"]
    assert main(["train", str(folder.parent / "tiny.toml"), *more]) == 0
    assert (last_complete(folder / "run/checkpoints") / "model.safetensors").exists()
    assert not (folder / "run/model").exists()


@pytest.mark.skipif(not os.environ.get("FOVEAL_LONG"), reason="takes minutes; set FOVEAL_LONG=1")
@pytest.mark.timeout(1000)
def test_four_start_twenty_times_of_twenty(recipe, after_dynamo):
    """New, and to go on."""
    results = forks.run(after_dynamo, DRIVER, recipe, "many")["many_starts"]
    assert [result["codes"] for result in results] == [[0] * 4] * 40
