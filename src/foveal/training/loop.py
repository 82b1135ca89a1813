"""The order of events while a model trains: steps, logs, evaluations, checkpoints, the end."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from accelerate import Accelerator
from torch import Tensor

from foveal.training.config import OptimizerConfig, TrainingConfig
from foveal.training.interrupt import Interrupt, Interrupted
from foveal.training.metrics import MetricsLog
from foveal.training.processes import StoppedElsewhereError
from foveal.training.progress import clock
from foveal.training.pulse import Heard, Pulse
from foveal.training.schedule import progress
from foveal.training.task import Task

MEASURED_STEPS = 10
"""Steps after which a run with a time budget says how many more there will be."""
EVALUATION_SHARE = 0.1
"""Most of the time so far that evaluations on the way may take of a time budget."""


class Trained(Protocol):
    """What the loop asks of a trainer; see `foveal.training.trainer.Trainer`."""

    task: Task
    training: TrainingConfig
    optimizer_config: OptimizerConfig
    accelerator: Accelerator
    optimizers: list[Any]
    uses_bfloat16: bool
    step: int
    elapsed: float

    def train_step(self) -> Tensor:
        """One optimizer step; its loss, scalar."""

    def evaluate(self, *, quick: bool) -> dict[str, float]:
        """The metrics of the task."""

    def save(self) -> Path:
        """Write a checkpoint."""

    def interrupted(self) -> Interrupted:
        """What to raise when all is saved."""


class Loop:
    """The order of events around the steps of a training."""

    def __init__(self, trainer: Trained, log: MetricsLog, bar: Any, interrupt: Interrupt) -> None:
        self.trainer, self.log, self.bar, self.interrupt = trainer, log, bar, interrupt
        self.training = trainer.training
        self._started = time.monotonic() - trainer.elapsed
        self._pulse = Pulse(trainer.accelerator, self.training.log_every)
        self._stop, self._loss = False, math.nan
        self._saved_at = trainer.elapsed  # by the shared clock: all must agree when it is late
        self._saved_step = trainer.step if trainer.step else -1
        self._losses: list[Tensor] = []
        self._logged_at, self._logged_step = time.monotonic(), trainer.step
        self._first = progress(self.training, trainer.step, trainer.elapsed)
        self._first_at = time.monotonic()
        self._first_step = trainer.step
        self._warm_at = 0.0  # when the first step was done, which may have compiled something
        self._evaluating = self._evaluation = 0.0  # seconds of all evaluations, and of the last

    def run(self) -> None:
        """Step until the budget is spent or somebody interrupts."""
        trainer = self.trainer
        trainer.task.model.train()
        self._say_precision()
        self._listen()
        while not self._finished():
            if self._stop:
                self._save()
                raise trainer.interrupted()
            self._losses.append(trainer.train_step())
            self._tick()
            if trainer.step == self._first_step + 1:
                self._warm_at = time.monotonic()
            if self._due(self.training.log_every) or self._finished():
                self._report()
            if trainer.step == self._first_step + MEASURED_STEPS:
                self._say_what_to_expect()
            if self._due(self.training.evaluate_every) and self._evaluation_fits():
                self._evaluate()
            if self._due(self.training.checkpoint_every) or self._save_is_late():
                self._save()
        self._save()
        if self._stop:
            raise trainer.interrupted()

    def _tick(self) -> None:
        """Move the clock on, and hear the others if it is time to.

        Where it says that the time is over, the others are asked, for it may be only a guess.
        """
        pulse, trainer = self._pulse, self.trainer
        trainer.elapsed = self._clock() if pulse.is_alone else pulse.elapsed(trainer.step)
        if pulse.is_due(trainer.step) or self._finished():
            self._listen(self._losses)
        elif pulse.is_alone:
            self._stop = self.interrupt.requested

    def _listen(self, losses: Sequence[Tensor] = ()) -> None:
        """Clock and wishes of all, and their losses; these may stop the training."""
        asked = self.interrupt.requested
        heard = self._pulse.exchange(self.trainer.step, self._clock(), asked, losses)
        self.trainer.elapsed, self._stop, self._loss = heard.elapsed, heard.stop, heard.loss
        if heard.broken:
            self._fail(heard)

    def _clock(self) -> float:
        """Seconds of training by this process's own clock."""
        return time.monotonic() - self._started

    def _finished(self) -> bool:
        return progress(self.training, self.trainer.step, self.trainer.elapsed) >= 1.0

    def _evaluation_fits(self) -> bool:
        """Whether there is time to look how far the model is; on slow machines there is little."""
        if self._finished():
            return False
        with_it = self._evaluating + self._evaluation
        # only the shared clock is asked, so that all processes come to the same answer
        return (
            self.training.time_budget is None or with_it <= EVALUATION_SHARE * self.trainer.elapsed
        )

    def _evaluate(self) -> None:
        self._listen()
        trainer, began = self.trainer, self.trainer.elapsed
        metrics = trainer.evaluate(quick=True)
        self.log.write(trainer.step, {f"valid/{k}": v for k, v in metrics.items()})
        self._listen()
        self._evaluation = trainer.elapsed - began
        self._evaluating += self._evaluation

    def _due(self, every: int) -> bool:
        return every > 0 and self.trainer.step % every == 0

    def _save_is_late(self) -> bool:
        limit = self.training.checkpoint_seconds
        return limit > 0 and self.trainer.elapsed - self._saved_at >= limit

    def _save(self) -> None:
        if self.trainer.step != self._saved_step:
            self.trainer.save()
            self._saved_step = self.trainer.step
            self._listen()
        self._saved_at = self.trainer.elapsed

    def _report(self) -> None:
        """Log the mean loss since the last report and redraw the progress."""
        trainer, now, loss = self.trainer, time.monotonic(), self._loss
        self._losses.clear()
        steps = trainer.step - self._logged_step
        units = steps * self.training.accumulate * trainer.task.units_per_batch
        speed = units * trainer.accelerator.num_processes / max(now - self._logged_at, 1e-9)
        self._logged_at, self._logged_step = now, trainer.step
        values = {"loss": loss, "lr": trainer.optimizers[0].param_groups[0]["lr"], "speed": speed}
        self.log.write(trainer.step, {**values, "elapsed": trainer.elapsed})
        self._show(loss, speed)

    def _fail(self, heard: Heard) -> None:
        """Stop for a loss that is no number, on all processes; the first one says so."""
        trainer, size = self.trainer, self.trainer.accelerator.num_processes
        numbers = ", ".join(map(str, heard.where))
        where = f" on process {numbers} of {size}, first at step {heard.broken}"
        kind = FloatingPointError if trainer.accelerator.is_main_process else StoppedElsewhereError
        raise kind(
            f"the loss became {heard.loss} at step {trainer.step}{where if size > 1 else ''}; "
            f"lower optimizer.learning_rate={trainer.optimizer_config.learning_rate} or raise "
            f"optimizer.warmup_steps={trainer.optimizer_config.warmup_steps}."
        )

    def _say_precision(self) -> None:
        trainer = self.trainer
        if self.training.precision == "bfloat16" and not trainer.uses_bfloat16:
            self.bar.say(
                "precision: float32, since this processor only emulates products in bfloat16"
            )

    def _say_what_to_expect(self) -> None:
        """After the first steps: how much of the data a time budget is enough for."""
        budget, trainer = self.training.time_budget, self.trainer
        if not budget or self._finished():
            return
        taken = max(1e-9, time.monotonic() - self._warm_at - self._evaluating)
        each = taken / (MEASURED_STEPS - 1)
        left, most = max(0, round((budget - trainer.elapsed) / each)), self.training.steps
        if most is not None and trainer.step + left > most:  # the time is more than is needed
            left = most - trainer.step
            budget = trainer.elapsed + left * each
        units = self.training.accumulate * trainer.task.units_per_batch
        units *= trainer.accelerator.num_processes
        products = "bfloat16" if trainer.uses_bfloat16 else "float32"
        self.bar.say(
            f"about {trainer.step + left:,} steps of {units:,} {trainer.task.unit} in "
            f"{clock(budget)} on this machine, products in {products}"
        )

    def _show(self, loss: float, speed: float) -> None:
        trainer = self.trainer
        done = progress(self.training, trainer.step, trainer.elapsed)
        left = (time.monotonic() - self._first_at) * (1 - done) / max(done - self._first, 1e-9)
        self.bar.update(
            done,
            f"step {trainer.step:,}  loss {loss:.3f}  "
            f"{speed:,.0f} {trainer.task.unit}/s  {clock(left)} left",
        )
