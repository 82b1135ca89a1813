"""What processes tell each other on the way: how late it is, who wants to stop, their losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

PATIENCE = 5.0
"""Seconds after which they speak at the latest, where steps are so slow that logs are rare."""


@dataclass(frozen=True)
class Heard:
    """What all processes know after an exchange.

    Attributes:
        elapsed: seconds of training, by the first process's clock.
        stop: whether any wants to stop.
        loss: the mean over all; that of those which broke first, if any did.
        broken: the step at which the first loss that is no number came, or 0.
        where: the processes that it came on.
    """

    elapsed: float
    stop: bool
    loss: float = math.nan
    broken: int = 0
    where: tuple[int, ...] = ()


class Pulse:
    """When processes speak, and the clock that they share meanwhile.

    They do so at every log; where so many steps take longer than `PATIENCE` seconds, after as many
    as take that long. In between nobody waits for anybody: the clock goes on by the pace of the
    steps before, which is the same on all, so that all decide alike.

    Args:
        accelerator: who they are.
        log_every: steps between logs.
    """

    def __init__(self, accelerator: Accelerator, log_every: int) -> None:
        self._accelerator, self._log_every = accelerator, log_every
        self.is_alone = accelerator.num_processes == 1
        self._elapsed, self._step, self._pace, self._until = 0.0, -1, 0.0, 1

    def is_due(self, step: int) -> bool:
        """Whether to speak after a step."""
        logs = step % self._log_every == 0
        return logs or (not self.is_alone and step >= self._step + self._until)

    def elapsed(self, step: int) -> float:
        """The time after a step at which they do not speak."""
        return self._elapsed + self._pace * (step - self._step)

    def exchange(
        self, step: int, elapsed: float, stop: bool, losses: Sequence[Tensor] = ()
    ) -> Heard:
        """Speak, and wait for all others.

        Args:
            elapsed, stop: this process's clock and wish.
            losses: scalars, of the last steps up to this one.
        """
        loss, broken = _sum_up(losses, step)
        if self.is_alone:
            return Heard(elapsed, stop, loss, broken, (0,) if broken else ())
        said = self._gather(elapsed, stop, loss, broken)
        if self._step >= 0 and step > self._step:
            self._pace = max((said.elapsed - self._elapsed) / (step - self._step), 1e-9)
            self._until = max(1, min(self._log_every, int(PATIENCE / self._pace)))
        self._elapsed, self._step = said.elapsed, step
        return said

    def _gather(self, elapsed: float, stop: bool, loss: float, broken: int) -> Heard:
        """One sum, in which each process has a place of its own for its loss."""
        size, rank = self._accelerator.num_processes, self._accelerator.process_index
        mine = torch.zeros(2 + 2 * size, dtype=torch.float64)
        mine[:2] = torch.tensor([elapsed if rank == 0 else 0.0, stop])
        mine[2 + rank], mine[2 + size + rank] = loss, broken
        told = self._accelerator.reduce(mine.to(self._accelerator.device), reduction="sum")
        clock, wishes, *rest = told.tolist()
        all_losses, steps = rest[:size], [int(one) for one in rest[size:]]
        first = min(filter(None, steps), default=0)
        where = tuple(number for number, one in enumerate(steps) if first and one == first)
        counted = [all_losses[number] for number in where] or all_losses
        return Heard(clock, wishes > 0, sum(counted) / len(counted), first, where)


def _sum_up(losses: Sequence[Tensor], step: int) -> tuple[float, int]:
    """The mean of losses up to a step, and the step of the first that is no number, or 0."""
    if not losses:
        return math.nan, 0
    values = torch.stack(list(losses))
    mean = float(values.mean())
    if math.isfinite(mean):
        return mean, 0
    broken = (~values.isfinite()).nonzero().flatten().tolist()
    return mean, step - len(losses) + 1 + broken[0] if broken else step
