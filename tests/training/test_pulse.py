"""Several processes on the way: played by threads, whose only exchange is one sum."""

import math
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from foveal.training import TrainingConfig
from foveal.training.config import OptimizerConfig, share_of_batch
from foveal.training.interrupt import Interrupted
from foveal.training.loop import Loop
from foveal.training.processes import StoppedElsewhereError
from foveal.training.pulse import Pulse


class Ranks:
    """Accelerators of threads; counts how often they have waited for each other."""

    def __init__(self, size):
        self.size, self.exchanges = size, 0
        self._told = [None] * size
        self._gate = threading.Barrier(size, action=self._count)
        gradients = threading.Barrier(size)
        self.members = [
            SimpleNamespace(
                num_processes=size,
                process_index=rank,
                is_main_process=rank == 0,
                device=torch.device("cpu"),
                reduce=lambda mine, reduction, rank=rank: self._sum(rank, mine),
                average_gradients=lambda: gradients.wait(20),
            )
            for rank in range(size)
        ]

    def _count(self):
        self.exchanges += 1

    def _sum(self, rank, mine):
        self._told[rank] = mine
        self._gate.wait(20)
        total = torch.stack(self._told).sum(0)
        self._gate.wait(20)
        self.exchanges -= rank == 0  # two gates, one exchange
        return total

    def play(self, action):
        """What `action(member)` returns, or raises, on each."""
        found = [None] * self.size

        def run(rank):
            try:
                found[rank] = action(self.members[rank])
            except Exception as error:
                found[rank] = error

        threads = [threading.Thread(target=run, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        return found


class Steps:
    """A trainer whose steps take a while and whose losses are what a function says."""

    def __init__(self, member, loss=lambda rank, step: 1.0, pause=0.0, **training):
        self.accelerator, self.rank = member, member.process_index
        self.training = TrainingConfig(**training)
        self.optimizer_config = OptimizerConfig()
        self.optimizers = [SimpleNamespace(param_groups=[{"lr": 1.0}])]
        self.task = SimpleNamespace(model=torch.nn.Identity(), unit="rows", units_per_batch=1)
        self.uses_bfloat16, self.step, self.elapsed = False, 0, 0.0
        self._loss, self._pause, self.saved = loss, pause, []

    def train_step(self):
        time.sleep(self._pause)
        self.accelerator.average_gradients()
        self.step += 1
        return torch.tensor(self._loss(self.rank, self.step), dtype=torch.float64)

    def save(self):
        self.saved.append(self.step)

    def interrupted(self):
        return Interrupted(self.step, None)


class Silent:
    """A log and a progress bar."""

    def __init__(self):
        self.written = []

    def write(self, step, values):
        self.written.append((step, values))

    def say(self, text):
        """Nothing is shown."""

    def update(self, done, text):
        """Nor is this."""


def train(member, wish=lambda rank, step: False, **options):
    """The steps that were taken, what was logged, and what ended the run."""
    trainer, quiet = Steps(member, **options), Silent()

    class Asked:
        @property
        def requested(self):
            return wish(member.process_index, trainer.step)

    ended = None
    try:
        Loop(trainer, quiet, quiet, Asked()).run()
    except Exception as error:
        ended = error
    return trainer, quiet.written, ended


def test_they_wait_for_each_other_at_logs_only():
    """One exchange at the start, one after the first step, one a log, one a checkpoint."""
    ranks = Ranks(3)
    found = ranks.play(
        lambda member: train(
            member,
            loss=lambda rank, step: rank + step,
            steps=40,
            log_every=10,
            evaluate_every=0,
            checkpoint_every=0,
        )
    )
    assert ranks.exchanges == 2 + 4 + 1
    for trainer, written, ended in found:
        assert ended is None
        assert trainer.saved == [40]
        assert [(step, values["loss"]) for step, values in written] == [
            (10, 6.5),
            (20, 16.5),
            (30, 26.5),
            (40, 36.5),
        ]


@pytest.mark.parametrize("budget", [0.15, 0.3])
def test_a_time_budget_ends_all_at_one_step(budget):
    """By one clock, though they look at it at logs only, and pauses are not alike."""
    found = Ranks(3).play(
        lambda member: train(
            member,
            pause=0.002 * (1 + member.process_index),
            time_budget=budget,
            log_every=1000,
            evaluate_every=0,
            checkpoint_every=0,
        )
    )
    assert len({trainer.step for trainer, *_ in found}) == 1
    assert len({trainer.elapsed for trainer, *_ in found}) == 1
    assert budget <= found[0][0].elapsed < budget + 0.5
    assert len({tuple(trainer.saved) for trainer, *_ in found}) == 1


@pytest.mark.parametrize(("who", "asked"), [(0, 3), (1, 12), (2, 20)])
def test_a_wish_of_any_is_heard_at_the_next_log(who, asked):
    """All save the same step, no later than the end of the interval."""
    found = Ranks(3).play(
        lambda member: train(
            member,
            wish=lambda rank, step: rank == who and step >= asked,
            steps=1000,
            log_every=10,
            evaluate_every=0,
            checkpoint_every=0,
        )
    )
    for trainer, _, ended in found:
        assert isinstance(ended, Interrupted)
        assert trainer.saved == [math.ceil(asked / 10) * 10]


def test_slow_steps_are_heard_in_seconds(monkeypatch):
    """Where a log is far away, they speak after a time instead."""
    monkeypatch.setattr("foveal.training.pulse.PATIENCE", 0.05)
    found = Ranks(2).play(
        lambda member: train(
            member,
            wish=lambda rank, step: rank == 1 and step >= 7,
            pause=0.01,
            steps=1000,
            log_every=500,
            evaluate_every=0,
            checkpoint_every=0,
        )
    )
    assert len({tuple(trainer.saved) for trainer, *_ in found}) == 1
    assert 7 <= found[0][0].saved[0] <= 20


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("who", "at"), [(0, 1), (1, 14), (2, 20)])
def test_a_loss_that_broke_anywhere_is_named_by_all(value, who, at):
    """At the same step, with the process and the step at which it began."""
    found = Ranks(3).play(
        lambda member: train(
            member,
            # a step later it has broken on all, as averaged gradients make it
            loss=lambda rank, step: value if step > at or (rank == who and step == at) else 1.0,
            steps=40,
            log_every=10,
            evaluate_every=0,
            checkpoint_every=0,
        )
    )
    heard = 1 if at == 1 else math.ceil(at / 10) * 10
    words = f"became {value} at step {heard} on process {who} of 3, first at step {at}; lower"
    for rank, (trainer, _, ended) in enumerate(found):
        assert type(ended) is (StoppedElsewhereError if rank else FloatingPointError)
        assert words in str(ended)
        assert trainer.saved == []


def test_alone_nobody_is_asked():
    """One process hears its own wish after the step, and its own clock."""
    (member,) = Ranks(1).members
    member.reduce = None
    trainer, _, ended = train(
        member, wish=lambda rank, step: step >= 3, steps=100, log_every=10, evaluate_every=0
    )
    assert isinstance(ended, Interrupted)
    assert trainer.saved == [3]
    assert not Pulse(member, 10).is_due(1)


@pytest.mark.parametrize(
    ("batch", "processes", "accumulate", "share"),
    [(8, 1, 1, 8), (8, 4, 2, 1), (12, 3, 2, 2), (1, 1, 1, 1)],
)
def test_a_batch_is_shared_out(batch, processes, accumulate, share):
    """Examples of one micro-batch of one process."""
    training = TrainingConfig(batch_size=batch, accumulate=accumulate)
    assert share_of_batch(training, processes) == share


@pytest.mark.parametrize(
    ("batch", "processes", "accumulate", "near"),
    [(9, 4, 1, "8 or 12"), (3, 4, 1, "4"), (10, 3, 2, "6 or 12"), (5, 1, 2, "4 or 6")],
)
def test_a_batch_that_cannot_be_shared_is_named(batch, processes, accumulate, near):
    """With the processes, the micro-batches and the sizes that work."""
    training = TrainingConfig(batch_size=batch, accumulate=accumulate)
    words = (
        rf"as processes={processes} with training.accumulate={accumulate} .*"
        rf"training.batch_size={batch}; use {near}\."
    )
    with pytest.raises(ValueError, match=words):
        share_of_batch(training, processes)
