"""The training loop, on Accelerate: one process or many, to a budget, resumable at any moment."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from foveal.common.processor import fast_dtype
from foveal.training import checkpoints
from foveal.training.config import OptimizerConfig, TrainingConfig, check_training
from foveal.training.interrupt import Interrupt, Interrupted
from foveal.training.machine import native_bfloat16, pick_device
from foveal.training.metrics import MetricsLog
from foveal.training.optimizers import make_optimizers
from foveal.training.processes import StoppedElsewhereError, from_first
from foveal.training.progress import clock, make_progress
from foveal.training.schedule import learning_rate, progress, time_used
from foveal.training.task import Task, Totals

CHECKPOINTS = "checkpoints"
MEASURED_STEPS = 10
"""Steps after which a run with a time budget says how many more there will be."""
EVALUATION_SHARE = 0.1
"""Most of the time so far that evaluations on the way may take of a time budget."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        step: optimizer steps taken in all.
        elapsed: seconds of training in all, over all resumes.
        metrics: the full evaluation at the end.
        checkpoint: the last checkpoint.
        is_main: whether this is the process that speaks for all.
    """

    step: int
    elapsed: float
    metrics: dict[str, float]
    checkpoint: Path
    is_main: bool = True


def make_accelerator(training: TrainingConfig) -> Accelerator:
    """Accelerate's view of this process: its device, its rank, its fellows."""
    device = pick_device(training.device)
    if device.index is not None:
        torch.accelerator.set_device_index(device.index)
    # without an accelerator and without this word each process would believe that it is alone
    return Accelerator(cpu=device.type == "cpu")


class Trainer:
    """Trains a task in a run folder until its budget is spent.

    Args:
        task: model, data, loss and score; its stream must be made for this process's rank.
        optimizer, training: how to train.
        folder: the run's folder, which must exist when `fit` or `save` is called.
        settings: the whole configuration, saved with each checkpoint.
        accelerator: from `make_accelerator`.
        title: shown beside the progress.

    Attributes:
        before_saving: called by the first process before each checkpoint; may raise OSError.
    """

    def __init__(
        self,
        task: Task,
        optimizer: OptimizerConfig,
        training: TrainingConfig,
        folder: Path,
        *,
        settings: dict[str, Any],
        accelerator: Accelerator,
        title: str = "training",
    ) -> None:
        check_training(training, optimizer)
        self.task, self.optimizer_config, self.training = task, optimizer, training
        self.folder, self.settings, self.accelerator = folder, settings, accelerator
        self.title = title
        self.before_saving: Callable[[], None] = lambda: None
        self.step, self.elapsed = 0, 0.0
        task.model.to(accelerator.device)
        made = make_optimizers(task.model, optimizer, accelerator.device)
        self.optimizers = [accelerator.prepare(one) for one in made]
        model = torch.compile(task.model) if training.compile else task.model
        self._model: nn.Module = accelerator.prepare(model)
        self.uses_bfloat16 = _uses_bfloat16(training, accelerator.device)

    def fit(self, resume_from: Path | None = None) -> Outcome:
        """Train to the end of the budget.

        Args:
            resume_from: a checkpoint to continue from.

        Raises:
            Interrupted: Ctrl-C or SIGTERM came; the state has been saved.
            FloatingPointError: the loss is no longer a number.
            ValueError: a tracker cannot be started; nothing is trained then.
        """
        if resume_from is not None:
            self._load(resume_from)
        main, log = self.accelerator.is_main_process, self._open_log()
        try:
            with make_progress(self.title, enabled=main) as bar, Interrupt() as interrupt:
                _Loop(self, log, bar, interrupt).run()
                metrics = self._final_metrics(interrupt)
                log.write(self.step, {f"final/{name}": value for name, value in metrics.items()})
        finally:
            log.close()
        return Outcome(self.step, self.elapsed, metrics, self._folder_of(self.step), main)

    def _open_log(self) -> MetricsLog:
        """Where numbers go; what the first process cannot open stops all."""
        opened = [MetricsLog(self.folder, enabled=False)]
        where = (self.folder, self.step, True, self.training.trackers, self.settings)
        from_first(self.accelerator, lambda: opened.append(MetricsLog(*where)))
        return opened[-1]

    @torch.no_grad()
    def rehearse(self) -> None:
        """Compute one loss and forget it, so that what cannot train fails before it has begun."""
        position = self.task.stream.state_dict()
        self.task.model.eval()
        try:
            with self.autocast():
                batch = _to_device(self.task.stream.next(), self.accelerator.device)
                self.task.loss(self.task.model, batch)
        finally:
            self.task.model.train()
            self.task.stream.load_state_dict(position)

    def train_step(self) -> Tensor:
        """One optimizer step; returns the mean loss of its micro-batches, detached, scalar."""
        # every step draws from a generator of its own: nothing to save, nothing disturbs it
        torch.manual_seed(
            _step_seed(self.training.seed, self.step, self.accelerator.process_index)
        )
        done = progress(self.training, self.step, self.elapsed)
        used = time_used(self.training, self.elapsed)
        rate = learning_rate(self.optimizer_config, self.step, done, used)
        for group in chain.from_iterable(one.param_groups for one in self.optimizers):
            group["lr"] = rate
        total = torch.zeros((), device=self.accelerator.device)
        count = self.training.accumulate
        for index in range(count):
            batch = _to_device(self.task.stream.next(), self.accelerator.device)
            with self._synchronised(last=index == count - 1):
                with self.autocast():
                    loss = self.task.loss(self._model, batch) / count
                self.accelerator.backward(loss)
            total += loss.detach()
        if self.optimizer_config.clip:
            self.accelerator.clip_grad_norm_(self._model.parameters(), self.optimizer_config.clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return total

    @torch.no_grad()
    def evaluate(self, *, quick: bool) -> dict[str, float]:
        """The task's metrics over all processes."""
        self.task.model.eval()
        try:
            with self.autocast():
                totals = self.task.evaluate(
                    quick=quick,
                    rank=self.accelerator.process_index,
                    world_size=self.accelerator.num_processes,
                )
        finally:
            self.task.model.train()
        return self._reduce(totals)

    def _final_metrics(self, interrupt: Interrupt) -> dict[str, float]:
        """The evaluation at the end; everything is saved by then, so a signal stops it at once."""
        interrupt.at_once = True
        try:
            return self.evaluate(quick=False)
        except KeyboardInterrupt:
            raise self.interrupted() from None

    def interrupted(self) -> Interrupted:
        """What to raise when somebody asked to stop and the state is saved."""
        return Interrupted(self.step, self.folder, self.accelerator.is_main_process)

    def save(self) -> Path:
        """Write a checkpoint of the present step; all processes wait for it.

        Raises:
            OSError: it could not be written; the ones before are whole.
            StoppedElsewhereError: likewise, on the other processes.
        """
        return from_first(self.accelerator, self._write_checkpoint)

    def _write_checkpoint(self) -> Path:
        self.before_saving()
        state = {
            "step": self.step,
            "elapsed": self.elapsed,
            "processes": self.accelerator.num_processes,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "stream": self.task.stream.state_dict(),
        }
        root, keep = self.folder / CHECKPOINTS, self.training.keep
        try:
            return checkpoints.save_checkpoint(
                root, self.step, self.task.model, state, self.settings, keep=keep
            )
        except OSError:
            self.before_saving()  # which may know better what went wrong
            raise

    def agree(self, elapsed: float, stop: bool) -> tuple[float, bool]:
        """The first process's clock, and whether any wants to stop, so that all leave together."""
        if self.accelerator.num_processes == 1:
            return elapsed, stop
        shared = elapsed if self.accelerator.is_main_process else 0.0
        values = torch.tensor([shared, stop], dtype=torch.float64).to(self.accelerator.device)
        values = self.accelerator.reduce(values, reduction="sum")
        return float(values[0]), bool(values[1])

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Matrix products in bfloat16, where configuration and device agree on it."""
        if not self.uses_bfloat16:
            return contextlib.nullcontext()
        return torch.autocast(self.accelerator.device.type, dtype=torch.bfloat16)

    def _load(self, folder: Path) -> None:
        checkpoints.load_weights(self.task.model, folder)
        state = checkpoints.load_state(folder)
        try:
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.step, self.elapsed = int(state["step"]), float(state["elapsed"])
            position = state["stream"]
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise checkpoints.CheckpointError(
                f"the state in {folder} does not fit this run: {error!r}."
            ) from error
        self.task.stream.load_state_dict(position)
        before, now = state.get("processes"), self.accelerator.num_processes
        if before not in (None, now) and self.accelerator.is_main_process:
            warnings.warn(
                f"{before} processes trained this run and {now} go on with it, each with batches "
                f"of {self.training.batch_size}: a step now sees {now / before:g} times as many "
                "examples.",
                stacklevel=2,
            )

    def _synchronised(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Exchange gradients between processes only at the last micro-batch."""
        return contextlib.nullcontext() if last else self.accelerator.no_sync(self._model)

    def mean(self, value: Tensor) -> float:
        """The mean of a scalar over all processes."""
        if self.accelerator.num_processes > 1:
            value = self.accelerator.reduce(value, reduction="mean")
        return float(value)

    def _reduce(self, totals: Totals) -> dict[str, float]:
        names = sorted(totals)
        values = torch.tensor([totals[name] for name in names], dtype=torch.float64)
        values = values.to(self.accelerator.device)
        values = self.accelerator.reduce(values, reduction="sum")
        return {
            name: float(total / count) for name, (total, count) in zip(names, values, strict=True)
        }

    def _folder_of(self, step: int) -> Path:
        return self.folder / CHECKPOINTS / f"step-{step:08d}"


class _Loop:
    """The order of events around `Trainer.train_step`."""

    def __init__(self, trainer: Trainer, log: MetricsLog, bar: Any, interrupt: Interrupt) -> None:
        self.trainer, self.log, self.bar, self.interrupt = trainer, log, bar, interrupt
        self.training = trainer.training
        self._started = time.monotonic() - trainer.elapsed
        self._saved_at = time.monotonic()
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
        stop = self._tick()
        while progress(self.training, trainer.step, trainer.elapsed) < 1.0:
            if stop:
                self._save()
                raise trainer.interrupted()
            self._losses.append(trainer.train_step())
            stop = self._tick()
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
        if stop:
            raise trainer.interrupted()

    def _tick(self) -> bool:
        """Move the clock on; returns whether to stop."""
        elapsed = time.monotonic() - self._started
        self.trainer.elapsed, stop = self.trainer.agree(elapsed, self.interrupt.requested)
        return stop

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
        trainer, began = self.trainer, self.trainer.elapsed
        metrics = trainer.evaluate(quick=True)
        self.log.write(trainer.step, {f"valid/{k}": v for k, v in metrics.items()})
        self._tick()
        self._evaluation = trainer.elapsed - began
        self._evaluating += self._evaluation

    def _due(self, every: int) -> bool:
        return every > 0 and self.trainer.step % every == 0

    def _save_is_late(self) -> bool:
        limit = self.training.checkpoint_seconds
        # the shared clock, so that all processes come to the same answer
        return limit > 0 and self.trainer.elapsed - (self._saved_at - self._started) >= limit

    def _save(self) -> None:
        if self.trainer.step != self._saved_step:
            self.trainer.save()
            self._saved_step = self.trainer.step
        self._saved_at = self._started + self.trainer.elapsed

    def _report(self) -> None:
        """Log the mean loss since the last report and redraw the progress."""
        trainer, now = self.trainer, time.monotonic()
        loss = trainer.mean(torch.stack(self._losses).mean())
        self._losses.clear()
        if not np.isfinite(loss):
            kind = (
                FloatingPointError
                if trainer.accelerator.is_main_process
                else StoppedElsewhereError
            )
            raise kind(
                f"the loss became {loss} at step {trainer.step}; lower optimizer.learning_rate="
                f"{trainer.optimizer_config.learning_rate} or raise optimizer.warmup_steps."
            )
        steps = trainer.step - self._logged_step
        units = steps * self.training.accumulate * trainer.task.units_per_batch
        speed = units * trainer.accelerator.num_processes / max(now - self._logged_at, 1e-9)
        self._logged_at, self._logged_step = now, trainer.step
        values = {"loss": loss, "lr": trainer.optimizers[0].param_groups[0]["lr"], "speed": speed}
        self.log.write(trainer.step, {**values, "elapsed": trainer.elapsed})
        self._show(loss, speed)

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


def _uses_bfloat16(training: TrainingConfig, device: torch.device) -> bool:
    if training.precision == "auto":
        return native_bfloat16(device)
    wished = training.precision == "bfloat16"
    return wished and fast_dtype(device, torch.bfloat16) == torch.bfloat16


def _step_seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)


def _to_device(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {name: _to_device(value, device) for name, value in batch.items()}
    return type(batch)(_to_device(value, device) for value in batch)
