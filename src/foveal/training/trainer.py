"""The training loop, on Accelerate: one process or many, to a budget, resumable at any moment."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor

from foveal.common import html
from foveal.common.by_example import rows_of_step
from foveal.common.processor import fast_dtype
from foveal.training import checkpoints
from foveal.training.config import OptimizerConfig, TrainingConfig, check_training
from foveal.training.folders import folder_of
from foveal.training.interrupt import Interrupt, Interrupted
from foveal.training.layout import Layout
from foveal.training.loop import Loop
from foveal.training.machine import native_bfloat16, pick_device
from foveal.training.metrics import MetricsLog
from foveal.training.optimizers import make_optimizers
from foveal.training.processes import from_first, together
from foveal.training.progress import make_progress
from foveal.training.schedule import learning_rate, progress, time_used
from foveal.training.task import Task, Totals
from foveal.training.weighing import GlobalMean
from foveal.training.weights import Weights, hold

CHECKPOINTS = "checkpoints"


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

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        about = {"steps": self.step, "minutes": self.elapsed / 60}
        return html.facts(about | self.metrics, title="training", note=str(self.checkpoint))


def make_accelerator(training: TrainingConfig) -> Accelerator:
    """Accelerate's view of this process: its device, its rank, its fellows."""
    device = pick_device(training.device)
    if device.index is not None:
        torch.accelerator.set_device_index(device.index)
    # without an accelerator and without this word each process would believe that it is alone
    buffers = DistributedDataParallelKwargs(broadcast_buffers=False)  # they begin and stay alike
    return Accelerator(cpu=device.type == "cpu", kwargs_handlers=[buffers])


class Trainer:
    """Trains a task in a run folder until its budget is spent.

    Args:
        task: model, data, loss and score; its stream must be made for this process's rank.
        optimizer, training: how to train.
        folder: the run's folder, which must exist when `fit` or `save` is called.
        settings: the whole configuration, saved with each checkpoint.
        accelerator: from `make_accelerator`.
        title: shown beside the progress.
        shard: where weights and optimizers live, see `ParallelConfig`.

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
        shard: Literal["none", "fsdp"] = "none",
    ) -> None:
        check_training(training, optimizer)
        self.task, self.optimizer_config, self.training = task, optimizer, training
        self.folder, self.settings, self.accelerator = folder, settings, accelerator
        self.title = title
        self.before_saving: Callable[[], None] = lambda: None
        self.step, self.elapsed = 0, 0.0
        self.weights: Weights = hold(
            task.model,
            lambda model: make_optimizers(model, optimizer, accelerator.device),
            accelerator,
            shard,
            compile=training.compile,
        )
        self.optimizers = self.weights.optimizers
        # tasks that know nothing of weights have micro-batches that weigh the same
        self._weight: Callable[[Any], float | None] = getattr(task, "weight", lambda batch: None)
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
            together(self.accelerator, lambda: self._load(resume_from))
        main, log = self.accelerator.is_main_process, self._open_log()
        try:
            with make_progress(self.title, enabled=main) as bar, Interrupt() as interrupt:
                Loop(self, log, bar, interrupt).run()
                metrics = self._final_metrics(interrupt)
                log.write(self.step, {f"final/{name}": value for name, value in metrics.items()})
        finally:
            log.close()
        checkpoint = folder_of(self.folder / CHECKPOINTS, self.step)
        return Outcome(self.step, self.elapsed, metrics, checkpoint, main)

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
            with self.weights.whole(), self.autocast():
                # one that cannot read must say so before others wait for it in the loss
                batch = together(self.accelerator, self.task.stream.next)
                self.task.loss(self.task.model, _to_device(batch, self.accelerator.device))
        finally:
            self.task.model.train()
            self.task.stream.load_state_dict(position)

    def train_step(self) -> Tensor:
        """One optimizer step; returns its loss, detached, scalar.

        Of several processes, each returns its part: the mean over them is the loss of the step.
        """
        # every step draws from a generator of its own: nothing to save, nothing disturbs it
        torch.manual_seed(
            _step_seed(self.training.seed, self.step, self.accelerator.process_index)
        )
        done = progress(self.training, self.step, self.elapsed)
        used = time_used(self.training, self.elapsed)
        rate = learning_rate(self.optimizer_config, self.step, done, used)
        for group in chain.from_iterable(one.param_groups for one in self.optimizers):
            group["lr"] = rate
        total = self._add_gradients()
        self.weights.settle(self.optimizer_config.clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return total

    def _add_gradients(self) -> Tensor:
        """Gradients of the mean loss over the batch of all processes; its part of this one."""
        total, count = None, self.training.accumulate
        mean = GlobalMean(self.accelerator, count)
        for index in range(count):
            batch = self.task.stream.next()
            mean.add(self._weight(batch))
            batch = _to_device(batch, self.accelerator.device)
            last = index == count - 1
            with self.weights.synchronised(last=last), self._rows(batch, index):
                with self.autocast():
                    loss = mean.scaled(self.task.loss(self.weights.model, batch))
                self.accelerator.backward(loss)
            total = loss.detach() if total is None else total + loss.detach()
        assert total is not None
        return mean.divide(total, self.weights.model.parameters())

    def _rows(self, batch: Any, index: int) -> contextlib.AbstractContextManager[None]:
        """Says which of the step's examples a micro-batch has: what is dropped is theirs."""
        layout = getattr(self.task, "layout", None) or Layout(
            self.accelerator.process_index, self.accelerator.num_processes
        )
        size = _rows_in(batch)
        first = (index * layout.data_size + layout.data_rank) * size
        return rows_of_step(self.training.seed, self.step, np.arange(first, first + size))

    @torch.no_grad()
    def evaluate(self, *, quick: bool) -> dict[str, float]:
        """The task's metrics over all processes."""
        self.task.model.eval()
        try:
            with self.weights.whole(), self.autocast():
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
        state = {
            "step": self.step,
            "elapsed": self.elapsed,
            "processes": self.accelerator.num_processes,
            "stream": self.task.stream.state_dict(),
        }
        return self.weights.save(
            self.folder / CHECKPOINTS,
            self.step,
            state,
            self.settings,
            keep=self.training.keep,
            check=lambda: self.before_saving(),
        )

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Matrix products in bfloat16, where configuration and device agree on it."""
        if not self.uses_bfloat16:
            return contextlib.nullcontext()
        return torch.autocast(self.accelerator.device.type, dtype=torch.bfloat16)

    def _load(self, folder: Path) -> None:
        state = self.weights.load(folder)
        with checkpoints.fitting(folder):
            self.step, self.elapsed = int(state["step"]), float(state["elapsed"])
            position = state["stream"]
        try:
            self.task.stream.load_state_dict(position)
        except (LookupError, TypeError, AttributeError) as error:  # of another kind of stream
            raise checkpoints.CheckpointError(
                f"the place in the data that {folder} keeps is none of these data: {error!r}."
            ) from error

    def _reduce(self, totals: Totals) -> dict[str, float]:
        names = sorted(totals)
        values = torch.tensor([totals[name] for name in names], dtype=torch.float64)
        values = values.to(self.accelerator.device)
        values = self.accelerator.reduce(values, reduction="sum")
        return {
            name: float(total / count) for name, (total, count) in zip(names, values, strict=True)
        }


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


def _rows_in(batch: Any) -> int:
    """Examples in a batch: rows of its first tensor."""
    while not isinstance(batch, Tensor):
        batch = next(iter(batch.values() if isinstance(batch, dict) else batch))
    return len(batch)
