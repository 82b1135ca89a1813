"""Where the weights of a training and their optimizers live: in every process, or in parts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import nn

from foveal.training import checkpoints
from foveal.training.folders import is_in_parts
from foveal.training.moments import states_from
from foveal.training.optimizers import MakeOptimizers
from foveal.training.processes import from_first, share_tensors, state_of_first


class Weights(Protocol):
    """What a trainer asks of the place where its weights are.

    Attributes:
        model: what a loss is computed with.
        optimizers: of its parameters; all step together.
    """

    model: nn.Module
    optimizers: list[Any]

    def synchronised(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Around a micro-batch: processes exchange gradients only at the last one."""

    def settle(self, clip: float) -> None:
        """Bring the gradients of a step to what optimizers take; of a norm of at most `clip`.

        Args:
            clip: 0 leaves the norm as it is.
        """

    def whole(self) -> contextlib.AbstractContextManager[Any]:
        """Around what each process computes with the task's model by itself, however often."""

    def save(
        self,
        root: Path,
        step: int,
        state: dict[str, Any],
        settings: dict[str, Any],
        *,
        keep: int,
        check: Callable[[], None],
    ) -> Path:
        """Write a checkpoint; all processes take part. See `checkpoints.save_checkpoint`.

        Args:
            check: called by the first process before and after a fault; may raise OSError.

        Raises:
            OSError: it could not be written; the ones before are whole.
            StoppedElsewhereError: likewise, on the other processes.
        """

    def load(self, folder: Path) -> dict[str, Any]:
        """Go on with weights and optimizers of a checkpoint; returns the `state` saved there.

        Raises:
            CheckpointError: it does not fit.
        """

    def end(self, checkpoint: Path) -> nn.Module | None:
        """After a training: a model that is whole, on the first process; None: the task's is."""


class Replicated:
    """All weights and optimizers in every process, which average their gradients.

    Args:
        model: moved to the accelerator's device.
        make: the optimizers of a model.
        compile: whether torch compiles the model.
    """

    def __init__(
        self, model: nn.Module, make: MakeOptimizers, accelerator: Accelerator, compile: bool
    ) -> None:
        self._own, self._accelerator = model, accelerator
        model.to(accelerator.device)
        self.optimizers = [accelerator.prepare(one) for one in make(model)]
        self.model: nn.Module = accelerator.prepare(torch.compile(model) if compile else model)

    def synchronised(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if last else self._accelerator.no_sync(self.model)

    def settle(self, clip: float) -> None:
        if clip:
            self._accelerator.clip_grad_norm_(self.model.parameters(), clip)

    def whole(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def save(
        self,
        root: Path,
        step: int,
        state: dict[str, Any],
        settings: dict[str, Any],
        *,
        keep: int,
        check: Callable[[], None],
    ) -> Path:
        def write() -> Path:
            check()
            optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
            all_state = {**state, "optimizers": optimizers}
            try:
                return checkpoints.save_checkpoint(
                    root, step, self._own, all_state, settings, keep=keep
                )
            except OSError:
                check()  # which may know better what went wrong
                raise

        return from_first(self._accelerator, write)

    def load(self, folder: Path) -> dict[str, Any]:
        def read() -> dict[str, Any]:
            checkpoints.load_weights(self._own, folder)
            return (
                self._parts_state(folder)
                if is_in_parts(folder)
                else checkpoints.load_state(folder)
            )

        # the others may be on machines that do not see the folder
        state = state_of_first(self._accelerator, read)
        share_tensors(self._accelerator, self._own.state_dict().values())
        with checkpoints.fitting(folder):
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
        return state

    def _parts_state(self, folder: Path) -> dict[str, Any]:
        """What `load_state` gives, of a checkpoint in parts."""
        from foveal.training.parts import load_parts_state, read_moments_of

        state = load_parts_state(folder)
        moments = read_moments_of(folder, dict(self._own.named_parameters()))
        with checkpoints.fitting(folder):
            states = states_from(self._own, self.optimizers, moments, state["optimizers"])
        return {**state, "optimizers": states}

    def end(self, checkpoint: Path) -> nn.Module | None:
        return None


def hold(
    model: nn.Module,
    make: MakeOptimizers,
    accelerator: Accelerator,
    shard: str,
    *,
    compile: bool = False,
) -> Weights:
    """Weights as `ParallelConfig.shard` says; a process that is alone has all of them.

    Raises:
        ValueError: see Sharded.
    """
    if shard == "none" or accelerator.num_processes == 1:
        return Replicated(model, make, accelerator, compile)
    from foveal.training.sharding import Sharded  # loads torch.distributed.fsdp

    return Sharded(model, make, accelerator, compile)
