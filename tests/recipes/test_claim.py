"""Run folders: one owner each, complete from the start, and readers that change nothing."""

import json
import os
import shutil
import signal
import threading
import time
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from foveal.common import locks
from foveal.common.files import partial_path, write_text
from foveal.recipes import claim
from foveal.recipes.bytes.writing import Continuation, add_sample
from foveal.recipes.claim import ClaimedFolder
from foveal.recipes.config import absolute_paths, load_recipe
from foveal.recipes.report import write_run_report
from foveal.recipes.run import evaluate, generate, train
from foveal.recipes.runs import load_config, load_model
from foveal.training.checkpoints import checkpoints, last_complete, read_last, save_checkpoint

ALONE = SimpleNamespace(num_processes=1, is_main_process=True, process_index=0)
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Runs go into an empty folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def brief(monkeypatch):
    """Runs end without pictures and samples, which take most of a short run's time."""
    monkeypatch.setattr("foveal.recipes.run.write_run_report", lambda folder: None)
    monkeypatch.setattr("foveal.recipes.run.finish", lambda *details: None)


@pytest.fixture
def config(recipe):
    """The tiny recipe's settings."""
    return load_recipe(str(recipe))


def in_child(action):
    """Run an action in a forked process; its id."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            action()
        code = 0
    finally:
        os._exit(code)


def exit_code(process):
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


# -- one owner ------------------------------------------------------------------------------------


@needs_fork
@pytest.mark.parametrize("moves", [True, False])
def test_runs_that_start_together_take_different_folders(config, tmp_path, monkeypatch, moves):
    """Eight processes that choose at the same moment get eight complete folders.

    Also where a folder with an open file cannot be renamed, as on Windows.
    """
    monkeypatch.setattr(claim, "_MOVES_OPEN_FILES", moves)
    ready, go = os.pipe()

    def start():
        with ClaimedFolder(config, None, False, ALONE) as claimed:
            os.read(ready, 1)
            claimed.claim()

    processes = [in_child(start) for _ in range(8)]
    time.sleep(0.2)
    os.write(go, b"x" * 8)
    assert [exit_code(process) for process in processes] == [0] * 8
    folders = sorted((tmp_path / "runs").iterdir())
    assert [f.name for f in folders] == [f"tiny-{n:03d}" for n in range(1, 9)]
    assert all(json.loads((f / "config.json").read_text())["task"] == "bytes" for f in folders)


@pytest.mark.parametrize("resume", [False, True])
def test_two_trainings_cannot_share_a_folder(brief, config, resume):
    """The second one is refused in a line that names the first; the first goes on."""
    with ClaimedFolder(config, "run", False, ALONE) as first:
        first.claim()
        with pytest.raises(ValueError, match=r"cannot share|already holds a run") as caught:
            train(config, "run", resume=resume)
        if resume:
            assert f"in use by process {os.getpid()}" in str(caught.value)
            assert "--output" in str(caught.value)
        first.check()
    train(config, "run", resume=True)


@pytest.mark.parametrize("output", ["file/run", "file/a/run", None, "loop/run", "loop", "x" * 300])
def test_a_place_where_no_folder_can_be_is_named(config, tmp_path, output):
    """Below a file, below a loop, runs/ that is a file, a name too long: an error, at once."""
    for name in ("file", "runs"):
        (tmp_path / name).write_text("x")
    (tmp_path / "loop").symlink_to("loop")
    with (
        pytest.raises((OSError, ValueError), match=(output or "runs").partition("/")[0]) as caught,
        ClaimedFolder(config, output, False, ALONE) as claimed,
    ):
        claimed.claim()
    assert "\n" not in str(caught.value)


def test_leftovers_of_a_process_with_our_number_do_not_stop_us(config, tmp_path):
    """In a container every process may have the same one."""
    left = partial_path(tmp_path / "run")
    left.mkdir()
    (left / "config.json").write_text("half")
    with ClaimedFolder(config, str(tmp_path / "run"), False, ALONE) as claimed:
        claimed.claim()
    assert not left.exists()


def test_checkpoints_without_a_config_are_not_trained_over(brief, config, tmp_path):
    """A run that lost its config.json is still one; resuming gives it back."""
    train(config, "run")
    (tmp_path / "run" / "config.json").unlink()
    with pytest.raises(ValueError, match="already holds a run"):
        train(config, "run")
    assert train(config, "run", resume=True)[1].step == 24
    assert load_config(tmp_path / "run") == absolute_paths(config)


def test_a_folder_that_was_free_when_chosen_may_be_taken_when_claimed(config):
    """Between the look and the claim somebody else may have begun there, or be under way."""
    late = ClaimedFolder(config, "run", False, ALONE)
    with ClaimedFolder(config, "run", False, ALONE) as quick:
        quick.claim()
        with pytest.raises(ValueError, match="cannot share a folder"):
            late.claim()
    with pytest.raises(ValueError, match="already holds a run"):
        late.claim()


@needs_fork
@pytest.mark.parametrize("moment", ["mkdir", "lock", "config", "rename", "after"])
def test_a_kill_at_the_start_leaves_no_half_folder(config, tmp_path, monkeypatch, moment):
    """A run folder has its config.json or does not exist; the leftovers go at the next start."""

    def die(*details, **more):
        os.kill(os.getpid(), signal.SIGKILL)

    def start():
        if moment == "mkdir":
            claim.FileLock = die
        elif moment == "lock":
            claim.sync = die
        elif moment == "config":
            claim._rename = die
        elif moment == "rename":
            claim.FileLock.move = die
        else:
            claim.write_text = die
        with ClaimedFolder(config, None, False, ALONE) as claimed:
            claimed.claim()

    assert exit_code(in_child(start)) == -signal.SIGKILL
    whole = [f for f in (tmp_path / "runs").glob("[!.]*") if (f / "config.json").is_file()]
    assert list((tmp_path / "runs").glob("[!.]*")) == whole
    with ClaimedFolder(config, None, False, ALONE) as claimed:
        assert claimed.claim().name == f"tiny-{len(whole) + 1:03d}"
    assert not list((tmp_path / "runs").glob(".*"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('name = "TransformerLM"', 'name = "TransformrLM"'),
        ("causal = true", "causal = false"),
        ("dim = 16", "dim = 10000000"),
        ("dim = 16", 'dim = "wide"'),
        ("context = 16", "context = 100000"),
        ("context = 16", "context = 0"),
        ("steps = 24", "time_budget = 0"),
        ("batch_size = 4", "batch_size = 100000000"),
        ("batch_size = 4", "batch_size = 152"),
        ("heads = 2", "heads = [2]"),
        ("depth = 1", "depth = 100000000"),
        ("learning_rate = 1e-2", "learning_rate = -1.0"),
        ('name = "SlidingWindow", window = 8', 'name = "SlidingWindow", window = -8'),
    ],
)
@pytest.mark.parametrize("output", [None, "run"])
def test_what_makes_no_run_writes_nothing(brief, recipe, tmp_path, old, new, output):
    """A mistake in model, pattern, data or budget is found before a folder is made."""
    assert old in recipe.read_text()
    recipe.write_text(recipe.read_text().replace(old, new, 1))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(
        ValueError, match=new.split()[0] + r"|causal|[Mm]odel|window|weights"
    ) as caught:
        train(load_recipe(str(recipe)), output)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_model_that_fails_at_its_first_batch_writes_nothing(recipe, tmp_path, monkeypatch):
    """A model of one's own whose forward pass is wrong is found out in the rehearsal."""
    (tmp_path / "own.py").write_text(
        "import torch\nclass Wrong(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__(); self.a = torch.nn.Linear(3, 3)\n"
        "    def forward(self, x):\n        raise RuntimeError('of the wrong shape')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    text = recipe.read_text()
    start, end = text.index("[model]"), text.index("[data]")
    recipe.write_text(text[:start] + '[model]\nname = "own:Wrong"\n\n' + text[end:])
    with pytest.raises(RuntimeError, match="wrong shape"):
        train(load_recipe(str(recipe)))
    assert not (tmp_path / "runs").exists()


def test_the_rehearsal_leaves_no_trace(brief, config, tmp_path, monkeypatch):
    """Weights, statistics and the place in the data are as if it had not been."""
    from foveal.training.trainer import Trainer

    train(config, "with")
    monkeypatch.setattr(Trainer, "rehearse", lambda self: None)
    train(config, "without")
    one, two = (
        (tmp_path / name / "checkpoints/step-00000024/model.safetensors").read_bytes()
        for name in ("with", "without")
    )
    assert one == two


# -- readers --------------------------------------------------------------------------------------


def writing(root, steps, keep=2):
    model, state = nn.Linear(200, 200), {"x": torch.zeros(9999)}
    for step in range(1, steps + 1):
        save_checkpoint(root, step, model, state, {}, keep=keep)


@needs_fork
@pytest.mark.parametrize("keep", [1, 2, 5])
def test_readers_in_a_tight_loop_do_not_disturb_a_writer(tmp_path, keep):
    """Nor does the writer disturb them: each finds a whole checkpoint, without a warning."""
    root = tmp_path / "checkpoints"
    writing(root, 2, keep)
    stop = threading.Event()
    seen, problems = set(), []

    def look():
        model = nn.Linear(200, 200)
        while not stop.is_set():
            try:
                from foveal.training.checkpoints import load_weights

                seen.add(read_last(root, lambda f: load_weights(model, f) or f.name))
            except Exception as error:
                problems.append(error)

    readers = [threading.Thread(target=look) for _ in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for reader in readers:
            reader.start()
        process = os.fork()
        if not process:
            code = 1
            try:
                writing(root, 25, keep)
                code = 0
            finally:
                os._exit(code)
        assert exit_code(process) == 0
        stop.set()
        for reader in readers:
            reader.join()
    assert not problems, problems[0]
    assert None not in seen
    assert len(checkpoints(root)) == keep
    assert not list(root.glob(".*"))


def test_a_checkpoint_that_vanishes_under_a_reader_is_replaced_by_the_next(tmp_path):
    """At any moment: while it is checked, or between the check and the reading."""
    writing(tmp_path, 2)
    gone = []

    def read(folder):
        if not gone:
            gone.append(folder)
            save_checkpoint(tmp_path, 3, nn.Linear(2, 2), {}, {}, keep=1)
        return (folder / "model.safetensors").read_bytes() and folder.name

    assert read_last(tmp_path, read) == "step-00000003"
    shutil.rmtree(tmp_path / "step-00000003")
    assert read_last(tmp_path, read) is None


def test_commands_that_read_leave_a_training_alone(brief, config, tmp_path):
    """What a training has half-written stays, whatever is evaluated or generated meanwhile."""
    folder, _ = train(config, "run")
    half = folder / "checkpoints" / f".step-00000099.{os.getppid()}-1.partial"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    write_text(folder / "checkpoints" / "note", "x")
    before = {p: p.stat().st_mtime_ns for p in (folder / "checkpoints").rglob("*")}
    with ClaimedFolder(config, "run", True, ALONE):
        half.mkdir(exist_ok=True)  # its owner tidies, and then goes on writing
        before = {p: p.stat().st_mtime_ns for p in (folder / "checkpoints").rglob("*")}
        evaluate(folder)
        generate(folder, "the ", 5)
        load_model(folder, load_config(folder))
        write_run_report(folder)
    assert {p: p.stat().st_mtime_ns for p in (folder / "checkpoints").rglob("*")} == before


def test_two_that_write_samples_lose_none(config, tmp_path):
    """Threads and processes that add at once each find theirs in the file."""
    (tmp_path / "run").mkdir()

    def add(number):
        add_sample(tmp_path / "run", Continuation(f"{number}", "text", 1, 1.0))

    threads = [threading.Thread(target=add, args=(n,)) for n in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = json.loads((tmp_path / "run/samples.json").read_text())
    assert sorted(int(entry["prompt"]) for entry in kept) == list(range(10))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("result.json", "[]"),
        ("result.json", '{"steps": "many"}'),
        ("evaluation.json", '{"bits_per_byte": null}'),
        ("evaluation.json", '"text"'),
        ("samples.json", '{"a": 1}'),
        ("samples.json", "[1, 2]"),
        ("result.json", "{"),
        ("samples.json", "\xff"),
    ],
)
def test_files_of_another_shape_are_named(config, tmp_path, name, content):
    """A report from files that somebody has changed is one line that names them."""
    with ClaimedFolder(config, "run", False, ALONE) as claimed:
        claimed.claim()
    (tmp_path / "run" / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=name.replace(".", r"\.")) as caught:
        write_run_report(tmp_path / "run")
    assert "\n" not in str(caught.value)


# -- what happens to a folder ---------------------------------------------------------------------


# the folder may go in the middle of a line of TensorBoard's own thread
@pytest.mark.filterwarnings("ignore:training.trackers")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_run_folder_that_is_deleted_is_not_written_again(recipe, tmp_path):
    """One line; no new folder with a lone checkpoint, none in a folder that took its place."""
    recipe.write_text(recipe.read_text().replace("steps = 24", "steps = 100000"))
    for replaced in (False, True):
        output = tmp_path / f"run{replaced}"

        def vanish(output=output, replaced=replaced):
            while not list(output.glob("checkpoints/step-*")):
                time.sleep(0.01)
            os.rename(output, tmp_path / f"moved{replaced}")
            if replaced:
                output.mkdir()

        thread = threading.Thread(target=vanish)
        thread.start()
        with pytest.raises(OSError, match="was deleted or replaced"):
            train(load_recipe(str(recipe)), str(output))
        thread.join()
        assert not list(output.glob("*"))
        assert last_complete(tmp_path / f"moved{replaced}" / "checkpoints")


@pytest.mark.parametrize("where", ["checkpoints", "config.json", ".lock", "metrics.jsonl"])
def test_something_else_in_the_place_of_a_file_is_named(brief, config, tmp_path, where):
    """A file where the folder of checkpoints belongs, folders where files belong."""
    (tmp_path / "run").mkdir()
    if where == "checkpoints":
        (tmp_path / "run" / where).write_text("x")
    else:
        (tmp_path / "run" / where).mkdir()
    with pytest.raises((ValueError, OSError), match=where.replace(".", r"\.")) as caught:
        train(config, "run", resume=True)
    assert "\n" not in str(caught.value)


def test_a_file_system_without_locks_still_trains(brief, config, monkeypatch):
    """Some network mounts have none; the name of the holder is then all there is."""

    def flock(file, how):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    train(config, "run")
    train(config, "run", resume=True)
