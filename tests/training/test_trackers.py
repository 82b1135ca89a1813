"""Accelerate's trackers: who is told what, and what happens when one of them fails."""

import contextlib
import json
import os
import shutil
import sys
import warnings

import pytest
from accelerate import tracking
from accelerate.tracking import GeneralTracker
from test_trainer import Regression

from foveal.training import OptimizerConfig, Trainer, TrainingConfig, make_accelerator
from foveal.training.config import check_training, from_dict
from foveal.training.metrics import MetricsLog, read_metrics
from foveal.training.trackers import PATIENCE, Trackers

SETTINGS = {"recipe": "mine", "model": {"depth": [1, 2], "bias": None}, "training": {"steps": 4}}


class Notes(GeneralTracker):
    """A tracker of one's own, that keeps what it is told and fails where it is asked to."""

    name = "notes"
    requires_logging_directory = False
    told: list = []  # noqa: RUF012
    fails_at: set = set()  # noqa: RUF012

    def __init__(self, run_name, **options):
        super().__init__()
        self.note("made", run_name, options)

    tracker = None

    def note(self, what, *said):
        self.told.append((what, *said))
        if what in self.fails_at or (what == "log" and said[0] in self.fails_at):
            raise ConnectionError("no network\nat all")

    def start(self):
        self.note("start")

    def store_init_configuration(self, values):
        self.note("settings", values)

    def log(self, values, step=None, **options):
        self.note("log", step, values)

    def finish(self):
        self.note("finish")


@pytest.fixture(autouse=True)
def notes(monkeypatch):
    """The tracker, registered with Accelerate as a user would."""
    make_accelerator(TrainingConfig(steps=1, device="cpu"))  # trackers ask it for their rank
    monkeypatch.setattr(Notes, "told", [])
    monkeypatch.setattr(Notes, "fails_at", set())
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "notes", Notes)
    return Notes


def fit(folder, trackers, steps=4, resume_from=None):
    config = TrainingConfig(steps=steps, log_every=2, device="cpu", trackers=trackers)
    folder.mkdir(exist_ok=True)
    accelerator = make_accelerator(config)
    optimizer = OptimizerConfig(warmup_steps=1)
    made = Trainer(
        Regression(), optimizer, config, folder, settings=SETTINGS, accelerator=accelerator
    )
    return made.fit(resume_from)


def warnings_of(log, steps):
    """What is said while a log is written and closed."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for step in range(1, steps + 1):
            log.write(step, {"loss": 1.0})
        log.close()
    return [str(one.message) for one in said]


def test_a_tracker_is_told_settings_and_every_number(tmp_path, notes):
    """It starts, hears the settings flat, then each line of metrics.jsonl, and is ended."""
    fit(tmp_path, ("notes",))
    assert [one[0] for one in notes.told] == ["made", "start", "settings", *["log"] * 3, "finish"]
    assert notes.told[0][1] == "foveal"
    assert notes.told[2][1] == {"recipe": "mine", "model.depth": "[1, 2]", "training.steps": 4}
    logged = [{"step": step, **values} for what, step, values in notes.told[3:-1]]
    assert logged == read_metrics(tmp_path)
    assert not (tmp_path / "tensorboard").exists()


@pytest.mark.parametrize("trackers", [(), None])
def test_who_is_told_unless_somebody_is_named(tmp_path, trackers, notes):
    """Nobody for an empty list; TensorBoard alone when nothing is said."""
    fit(tmp_path, trackers)
    assert (tmp_path / "tensorboard").is_dir() is (trackers is None)
    assert notes.told == []
    assert len(read_metrics(tmp_path)) == 3


def test_only_the_first_process_writes(tmp_path, notes):
    """On the others nothing is made, not even the file."""
    log = MetricsLog(tmp_path, enabled=False, trackers=("notes", "tensorboard"))
    log.write(1, {"loss": 1.0})
    log.close()
    assert notes.told == [] == list(tmp_path.iterdir())


def test_a_failure_on_the_way_is_said_and_the_training_goes_on(tmp_path, notes):
    """One failed step is one warning; what comes after is written again."""
    notes.fails_at.add(2)
    with pytest.warns(UserWarning, match=r"notes failed at step 2 \(ConnectionError: no network"):
        outcome = fit(tmp_path, ("notes",))
    assert outcome.step == 4
    assert [one[1] for one in notes.told if one[0] == "log"] == [2, 4, 4]
    assert len(read_metrics(tmp_path)) == 3


def test_one_that_keeps_failing_is_left_out(tmp_path, notes):
    """After a few failures in a row it is closed, and the others go on."""
    notes.fails_at.update(range(100), {"finish"})
    log = MetricsLog(tmp_path, trackers=("notes", "tensorboard"))
    messages = warnings_of(log, PATIENCE + 3)
    assert len(messages) == 2
    assert f"failed {PATIENCE} times in a row and is left out after step {PATIENCE}" in messages[1]
    assert all("\n" not in one and "metrics.jsonl has every number" in one for one in messages)
    assert [one[0] for one in notes.told] == ["made", "start", *["log"] * PATIENCE, "finish"]
    assert steps_of(tmp_path) == [*range(1, PATIENCE + 4)]


@pytest.mark.parametrize("where", ["made", "start", "settings"])
def test_one_that_cannot_start_stops_before_the_training(tmp_path, where, notes):
    """Who asks for a tracker hears in one line that there is none, and loses no hours."""
    notes.fails_at.add(where)
    with pytest.raises(ValueError, match="notes cannot be started: ConnectionError") as caught:
        fit(tmp_path, ("tensorboard", "notes"))
    assert "\n" not in str(caught.value)
    assert read_metrics(tmp_path) == []


def test_a_close_that_fails_is_said(tmp_path, notes):
    """The run is done, whatever the tracker says at the end."""
    notes.fails_at.add("finish")
    with pytest.warns(UserWarning, match="notes cannot be closed"):
        assert fit(tmp_path, ("notes",)).step == 4


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("tensorbord",), "'tensorbord'; did you mean 'tensorboard'"),
        (("tensorboard", "mlfow"), "'mlfow'; did you mean 'mlflow'"),
        (("Wandb",), "did you mean 'wandb'"),
        (("all",), "known: aim, clearml"),
        (("",), "got ''; known: "),
    ],
)
def test_misspelt_names_are_told(names, message):
    """The nearest name that Accelerate knows, before anything is made."""
    with pytest.raises(ValueError, match=message):
        check_training(TrainingConfig(steps=1, trackers=names), OptimizerConfig())


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio", "comet_ml", "tensorboard"])
def test_a_missing_package_is_named_before_the_training(name, monkeypatch):
    """One line, with the command that installs it."""
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("importlib.util.find_spec", lambda found, *more: None)
    command = "'foveal\\[train\\]'" if name == "tensorboard" else name
    with pytest.raises(ModuleNotFoundError, match=f"not installed: pip install {command}$"):
        check_training(TrainingConfig(steps=1, trackers=(name,)), OptimizerConfig())


@pytest.mark.parametrize("value", ["wandb", ["wandb", 3], 3, [["wandb"]], {"wandb": 1}])
def test_what_is_no_list_of_names_is_refused(value):
    """A recipe with another value is told what belongs there; a list is kept as a tuple."""
    with pytest.raises(ValueError, match="trackers in it must be a list of texts or left out"):
        from_dict(TrainingConfig, {"trackers": value}, "it")
    assert from_dict(TrainingConfig, {"trackers": ["a", "b"]}, "it").trackers == ("a", "b")


def test_a_run_that_goes_on_does_so_there(tmp_path, notes, monkeypatch):
    """What wandb calls a run is kept with it, and given back when the run is resumed."""

    class Wandb(Notes):
        tracker = type("Run", (), {"id": "x7"})

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Wandb)
    MetricsLog(tmp_path, trackers=("wandb",), settings=SETTINGS).close()
    MetricsLog(tmp_path, 2, trackers=("wandb",), settings=SETTINGS).close()
    first, again = (one[2] for one in notes.told if one[0] == "made")
    assert again == {**first, "id": "x7", "resume": "allow"}
    assert [one[0] for one in notes.told].count("settings") == 1
    (tmp_path / "trackers.json").write_text("[")  # damaged: another one begins
    MetricsLog(tmp_path, 2, trackers=("wandb",)).close()
    assert json.loads((tmp_path / "trackers.json").read_text()) == {"wandb": "x7"}


# -- TensorBoard itself ---------------------------------------------------------------------------


def events(folder):
    """The events of each file, the oldest file first."""
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    files = sorted((folder / "tensorboard").iterdir())
    assert all(file.is_file() for file in files)
    return [list(loader.EventFileLoader(str(file)).Load()) for file in files]


def steps_of(folder):
    return [e.step for file in events(folder) for e in file for v in e.summary.value]


def test_tensorboard_reads_the_same_numbers(tmp_path):
    """What is written for it comes back; a resumed run takes back what came after its start."""
    log = MetricsLog(tmp_path)
    log.write(3, {"loss": 0.5, "valid/error": 2.0})
    first = events(tmp_path)[0]  # at once, for a process that is killed next
    log.close()
    MetricsLog(tmp_path, step=2).close()
    found = {
        value.tag: (value.simple_value or value.tensor.float_val[0], event.step)
        for event in first
        for value in event.summary.value
    }
    assert found == {"loss": (0.5, 3), "valid/error": (2.0, 3)}
    second = events(tmp_path)[1]
    starts = [event.step for event in second if event.session_log.status]
    assert starts == [3]


def test_tensorboard_knows_the_settings(tmp_path):
    """As hyper-parameters of this run, in its own file, once."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    fit(tmp_path, None)
    found = [
        HParamsPluginData.FromString(value.metadata.plugin_data.content)
        for file in events(tmp_path)
        for event in file
        for value in event.summary.value
        if value.metadata.plugin_data.plugin_name == "hparams"
    ]
    told = [one.session_start_info.hparams for one in found if one.HasField("session_start_info")]
    assert len(told) == 1
    assert sorted(told[0]) == ["model.depth", "recipe", "training.steps"]
    assert told[0]["training.steps"].number_value == 4


def test_a_folder_of_tensorboard_that_is_deleted_is_left_out(tmp_path):
    """One warning while the run is there; none of a run that is gone, which others tell."""
    for name in ("kept", "gone"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        told = Trackers(["tensorboard"], folder)
        told.log(1, {"loss": 1.0})
        shutil.rmtree(folder / "tensorboard" if name == "kept" else folder)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            told.log(2, {"loss": 0.5})
            told.log(3, {"loss": 0.4})
            told.close()
        assert len([one for one in said if "left out after step 2" in str(one.message)]) == len(
            said
        )
        assert len(said) == (name == "kept")
        assert not (folder / "tensorboard").exists()


def test_a_full_disk_under_tensorboard_is_a_warning(tmp_path):
    """The training loses its curves there, and nothing else."""
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    log = MetricsLog(tmp_path)
    writer = log._trackers._running["tensorboard"].writer.file_writer.event_writer
    with contextlib.suppress(OSError), open("/dev/full", "wb") as full:
        writer._async_writer._writer._writer = full
        said = warnings_of(log, 5)
    assert len(said) == 2
    assert "tensorboard failed at step 1 (OSError: [Errno 28] No space left on device)" in said[0]
    assert len(read_metrics(tmp_path)) == 5
