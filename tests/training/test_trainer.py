"""The loop: it learns, keeps to its budget, logs, saves, stops when asked."""

import contextlib
import os
import re
import signal
import time

import pytest
import torch
from torch import nn

from foveal.common import processor
from foveal.training import OptimizerConfig, Trainer, TrainingConfig, machine, make_accelerator
from foveal.training.checkpoints import CheckpointError, checkpoints, last_complete, load_weights
from foveal.training.interrupt import Interrupted
from foveal.training.metrics import MetricsLog, read_metrics
from foveal.training.optimizers import make_optimizers


class Numbers:
    """A stream of the numbers 1, 2, 3, ... as inputs."""

    def __init__(self):
        self.count = 0

    def next(self):
        self.count += 1
        generator = torch.Generator().manual_seed(self.count)
        return torch.randn(8, 3, generator=generator)

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


class Regression:
    """Learns a fixed linear map through dropout."""

    unit, units_per_batch, score = "rows", 8, "error"

    def __init__(self, at_step=None):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 16), nn.Dropout(0.1), nn.Linear(16, 1))
        self.stream = Numbers()
        self.at_step = at_step or (lambda step: None)
        self.evaluations = 0

    def loss(self, model, batch):
        self.at_step(self.stream.count)
        return (model(batch).squeeze(-1) - batch.sum(-1)).square().mean()

    def evaluate(self, *, quick, rank=0, world_size=1):
        assert not self.model.training
        assert not torch.is_grad_enabled()
        self.evaluations += 1
        x = torch.ones(4, 3)
        return {"error": (float((self.model(x) - 3).abs().sum()), 4)}


class SlowToScore(Regression):
    """Its quick evaluations take ten times as long as a step."""

    def evaluate(self, **options):
        time.sleep(0.1 if options["quick"] else 0.0)
        return super().evaluate(**options)


def trainer(folder, task=None, **training):
    options = {"precision": "float32", "device": "cpu", "log_every": 5, **training}
    config = TrainingConfig(**options)
    folder.mkdir(exist_ok=True)
    return Trainer(
        task or Regression(),
        OptimizerConfig(learning_rate=1e-2, warmup_steps=5),
        config,
        folder,
        settings={},
        accelerator=make_accelerator(config),
    )


def test_it_learns_and_leaves_everything_behind(tmp_path):
    """A run lowers its loss and ends with metrics, TensorBoard files and checkpoints."""
    outcome = trainer(tmp_path, steps=200, evaluate_every=50, checkpoint_every=60, keep=2).fit()
    assert outcome.step == 200
    assert outcome.metrics["error"] < 0.5
    entries = read_metrics(tmp_path)
    losses = [entry["loss"] for entry in entries if "loss" in entry]
    assert len(losses) == 40
    assert losses[-1] < losses[0] / 4
    assert [e["step"] for e in entries if "valid/error" in e] == [50, 100, 150]
    assert [e["step"] for e in entries if "final/error" in e] == [200]
    names = [folder.name for folder in checkpoints(tmp_path / "checkpoints")]
    assert names == ["step-00000180", "step-00000200"]
    assert outcome.checkpoint == last_complete(tmp_path / "checkpoints")
    assert list((tmp_path / "tensorboard").iterdir())


def test_evaluating_logging_and_saving_do_not_change_the_result(tmp_path):
    """What only watches has no influence on the weights."""
    quiet, busy = Regression(), Regression()
    trainer(tmp_path / "a", quiet, steps=40, evaluate_every=0, checkpoint_every=0).fit()
    trainer(
        tmp_path / "b", busy, steps=40, evaluate_every=3, checkpoint_every=7, log_every=1
    ).fit()
    assert busy.evaluations > quiet.evaluations
    for a, b in zip(quiet.model.parameters(), busy.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_resuming_equals_not_stopping(tmp_path):
    """From a checkpoint the run goes on to exactly the same weights, dropout included."""
    whole, first, second = Regression(), Regression(), Regression()
    trainer(tmp_path / "a", whole, steps=50).fit()
    stopped = trainer(tmp_path / "b", first, steps=50)
    for _ in range(23):
        stopped.train_step()
    saved = stopped.save()
    torch.manual_seed(12345)
    trainer(tmp_path / "b", second, steps=50).fit(resume_from=saved)
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_optimizers_share_out_the_parameters(name):
    """Every parameter is trained once; Muon gets hidden matrices; vectors do not decay."""
    model = nn.ModuleDict(
        {"body": nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4)), "head": nn.Linear(4, 2)}
    )
    made = make_optimizers(model, OptimizerConfig(name=name), torch.device("cpu"))
    assert [type(one).__name__ for one in made] == ["Muon", "AdamW"][name == "adamw" :]
    groups = [group for one in made for group in one.param_groups]
    trained = [id(p) for group in groups for p in group["params"]]
    assert sorted(trained) == sorted(map(id, model.parameters()))
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {id(p) for p in model.parameters() if p.ndim == 2}
    if name == "muon":
        hidden = {id(model["body"][0].weight), id(model["body"][1].weight)}
        assert {id(p) for p in made[0].param_groups[0]["params"]} == hidden


def test_accumulation_equals_a_larger_batch(tmp_path):
    """Two micro-batches count as their mean."""

    class Plain(Regression):
        def __init__(self, size):
            super().__init__()
            self.model = nn.Linear(3, 1, bias=False)
            nn.init.zeros_(self.model.weight)
            self.data = torch.randn(16, 3, generator=torch.Generator().manual_seed(1)).split(size)
            self.stream = self
            self.count = 0

        def next(self):
            self.count += 1
            return self.data[(self.count - 1) % len(self.data)]

        def state_dict(self):
            return {}

    halves, whole = Plain(8), Plain(16)
    trainer(tmp_path / "a", halves, steps=5, accumulate=2).fit()
    trainer(tmp_path / "b", whole, steps=5).fit()
    torch.testing.assert_close(halves.model.weight, whole.model.weight)


def test_a_time_budget_ends_in_time_with_its_cosine_done(tmp_path):
    """A wall-clock budget is kept, and the learning rate has come down by then."""
    task = Regression(at_step=lambda step: time.sleep(0.005))
    outcome = trainer(tmp_path, task, time_budget=0.5, log_every=1, evaluate_every=0).fit()
    assert 0.5 <= outcome.elapsed < 2.0
    rates = [entry["lr"] for entry in read_metrics(tmp_path) if "lr" in entry]
    assert max(rates) > 5e-3
    assert rates[-1] < 2e-3


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_saves_and_the_run_goes_on_exactly(tmp_path, which):
    """Ctrl-C finishes the step, saves, and says where; resuming reaches the same weights."""
    whole, resumed = Regression(), Regression()
    trainer(tmp_path / "a", whole, steps=30).fit()
    stopping = Regression(at_step=lambda step: step == 12 and os.kill(os.getpid(), which))
    with pytest.raises(Interrupted, match="step 12"):
        trainer(tmp_path / "b", stopping, steps=30).fit()
    last = last_complete(tmp_path / "b" / "checkpoints")
    assert last.name == "step-00000012"
    trainer(tmp_path / "b", resumed, steps=30).fit(resume_from=last)
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_second_interrupt_does_not_wait(tmp_path):
    """Who presses Ctrl-C twice means it."""

    def twice(step):
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)

    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, Regression(at_step=twice), steps=30).fit()


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    """Divergence is named with the setting to change, and is not saved as a result."""
    task = Regression()
    task.loss = lambda model, batch: model(batch).sum() * float("nan")
    with pytest.raises(FloatingPointError, match=r"nan at step 5; lower optimizer.learning_rate"):
        trainer(tmp_path, task, steps=30).fit()


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("precision", ["bfloat16", "auto", "float32"])
def test_bfloat16_is_used_where_asked_for_and_native(
    tmp_path, monkeypatch, capsys, native, precision
):
    """Products run in bfloat16 where the processor has them, else in float32 with a word."""
    monkeypatch.setattr(processor, "multiplies_bfloat16", lambda: native)
    monkeypatch.setattr(machine, "multiplies_bfloat16", lambda: native)
    seen = []
    task = Regression()
    task.model[0].register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    trainer(tmp_path, task, steps=2, precision=precision).fit()
    expected = torch.bfloat16 if native and precision != "float32" else torch.float32
    assert set(seen) == {expected}
    assert task.model[0].weight.dtype == torch.float32
    said = "only emulates" in capsys.readouterr().out
    assert said == (precision == "bfloat16" and not native)


@pytest.mark.parametrize(("first", "every"), [(0.01, 0), (0.5, 0), (0.01, 3)])
def test_a_time_budget_says_what_it_is_enough_for(tmp_path, capsys, first, every):
    """After ten steps: how many there will be, of what, in which precision.

    A first step that compiles something, and evaluations between the ten, do not count.
    """
    task = SlowToScore(at_step=lambda step: time.sleep(first if step == 1 else 0.01))
    outcome = trainer(tmp_path, task, time_budget=1.0, evaluate_every=every).fit()
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("about")]
    found = re.fullmatch(
        r"about (\d+) steps of 8 rows in 0:01 on this machine, products in float32", line
    )
    assert outcome.step / 2 < int(found[1]) < outcome.step * 2


def test_steps_that_need_less_than_the_time_say_how_much(tmp_path, capsys):
    """Where both budgets are given and the steps end first, the time is that of the steps."""
    task = Regression(at_step=lambda step: time.sleep(0.02))
    trainer(tmp_path, task, time_budget=180.0, steps=100).fit()
    said = capsys.readouterr().out
    found = re.search(r"about 100 steps of 8 rows in 0:0(\d) on this machine", said)
    assert 2 <= int(found[1]) <= 5, said


def test_evaluations_do_not_eat_a_time_budget(tmp_path):
    """Slow ones are left out once they would take more than a tenth of the time."""
    task = SlowToScore(at_step=lambda step: time.sleep(0.01))
    trainer(tmp_path / "a", task, time_budget=1.5, evaluate_every=5).fit()
    assert 2 <= task.evaluations <= 4  # of some twenty, the last one in full
    task = SlowToScore()
    trainer(tmp_path / "b", task, steps=20, evaluate_every=5).fit()
    assert task.evaluations == 4  # steps alone: all of them


def test_a_finished_run_is_not_trained_again(tmp_path):
    """Resuming at the end evaluates and leaves the weights alone."""
    outcome = trainer(tmp_path, steps=10).fit()
    again = Regression()
    second = trainer(tmp_path, again, steps=10).fit(resume_from=outcome.checkpoint)
    assert second.step == 10
    kept = Regression()
    load_weights(kept.model, outcome.checkpoint)
    for a, b in zip(again.model.parameters(), kept.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_metrics_of_steps_taken_again_appear_once(tmp_path):
    """Lines after the checkpoint a run resumes from are dropped, and so is a torn last line."""
    log = MetricsLog(tmp_path)
    for step in (1, 2, 3):
        log.write(step, {"loss": step})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    log = MetricsLog(tmp_path, step=2)
    log.write(3, {"loss": 33})
    log.close()
    assert [(e["step"], e["loss"]) for e in read_metrics(tmp_path)] == [(1, 1), (2, 2), (3, 33)]


@pytest.mark.parametrize(
    "content", [b"", b"PK", b"text", [1, 2], {"step": 1}, {"step": "x", "optimizers": []}]
)
def test_a_state_of_another_shape_is_named(tmp_path, content):
    """Whatever lies in state.pt, it is one line that names the file or the checkpoint."""
    folder = trainer(tmp_path, steps=1).fit().checkpoint
    if isinstance(content, bytes):
        (folder / "state.pt").write_bytes(content)
    else:
        torch.save(content, folder / "state.pt")
    with pytest.raises(CheckpointError, match=r"state") as caught:
        trainer(tmp_path, steps=2).fit(resume_from=folder)
    assert "\n" not in str(caught.value)


def test_the_end_can_be_interrupted(tmp_path):
    """Once all is saved, Ctrl-C stops the last evaluation at once; the run is not lost."""
    task = Regression()
    task.evaluate = lambda **details: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(5)
    with pytest.raises(Interrupted, match="step 10"):
        trainer(tmp_path, task, steps=10, evaluate_every=0).fit()
    assert last_complete(tmp_path / "checkpoints").name == "step-00000010"


def test_a_log_that_cannot_be_written_is_named(tmp_path):
    """A full disk under metrics.jsonl stops the run with a line."""
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    log = MetricsLog(tmp_path, trackers=())
    log._file.close()
    with contextlib.suppress(OSError), open("/dev/full", "a") as full:
        log._file = full
        with pytest.raises(OSError, match="/dev/full cannot be written: No space left"):
            log.write(1, {"loss": 1.0})
    log.close()


@pytest.mark.parametrize(
    "line",
    ["[1, 2]", "3", "null", '{"loss": 1}', '{"step": "x"}', '{"step": 1, "loss": "x"}', "\xff"],
)
def test_lines_that_are_no_entries_are_left_out(tmp_path, line):
    """Whatever stands in metrics.jsonl, the numbers around it are read."""
    whole = '{"step": 1, "loss": 2.0}'
    (tmp_path / "metrics.jsonl").write_bytes(f"{whole}\n{line}\n{whole}\n".encode("latin-1"))
    assert read_metrics(tmp_path, 5) == [{"step": 1, "loss": 2.0}] * 2
