"""The mean over all that a step sees, where its parts weigh unequally."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor


class GlobalMean:
    """Makes means over micro-batches, of all processes, the mean over all of their terms.

    Micro-batches that weigh the same need nothing but their number. Where a task says how much
    each weighs, each loss becomes a sum, and gradients are divided by the sum of all weights. That
    sum is under way between processes while gradients are computed, and nobody waits for it.

    Args:
        accelerator: which processes there are.
        count: micro-batches of this process in a step.
    """

    def __init__(self, accelerator: Accelerator, count: int) -> None:
        self._accelerator, self._count, self._added = accelerator, count, 0
        self._weight: float | None = None
        self._sum = 0.0
        self._total: Tensor | None = None
        self._sent: Any = None

    def add(self, weight: float | None) -> None:
        """Take in the next micro-batch: its number of terms, None if that is always the same."""
        size, self._added = self._accelerator.num_processes, self._added + 1
        if weight is None or (size == 1 and self._count == 1):
            return
        self._weight = float(weight)
        self._sum += self._weight
        if self._added == self._count:
            total = torch.tensor(self._sum, dtype=torch.float64)
            self._total = total.to(self._accelerator.device, non_blocking=True)
            self._sent = dist.all_reduce(self._total, async_op=True) if size > 1 else None

    def scaled(self, loss: Tensor) -> Tensor:
        """What a micro-batch adds to the loss of the step, up to the division."""
        if self._weight is None:
            return loss / self._count
        if not self._weight:  # a mean over nothing is no number
            loss = loss.nan_to_num()
        return loss * self._weight

    def divide(self, loss: Tensor, parameters: Iterable[Tensor]) -> Tensor:
        """Divide the gradients; returns the loss so that the mean over processes is that of all.

        Args:
            loss: the sum of what `scaled` gave, detached, scalar.
        """
        if self._total is None:
            return loss
        if self._sent is not None:
            self._sent.wait()  # done: gradients, which were sent later, are there
        factor = self._accelerator.num_processes / self._total
        for parameter in parameters:
            if parameter.grad is not None:
                grad: Any = parameter.grad
                grad = grad.to_local() if hasattr(grad, "to_local") else grad
                grad.mul_(factor)
        return loss * factor
