"""What the trainer asks of the thing it trains."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn


class Stream(Protocol):
    """Endless batches whose position can be saved."""

    def next(self) -> Any:
        """The next batch of this process."""

    def state_dict(self) -> dict[str, Any]:
        """The position, the same on every process."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a saved position."""


Totals = dict[str, tuple[float, float]]
"""Sums and counts by metric; the metric is sum / count once all processes have added theirs."""


class Task(Protocol):
    """A model, its data, its loss and its score.

    Attributes:
        unit: what the model consumes, in the plural, for the speed: "tokens", "images".
        units_per_batch: how many of them are in one batch of one process.
        score: the metric of `evaluate` that describes a run.
    """

    unit: str
    units_per_batch: int
    score: str

    @property
    def model(self) -> nn.Module:
        """What is trained."""

    @property
    def stream(self) -> Stream:
        """Where its batches come from."""

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Scalar loss of a batch; `model` is `self.model`, perhaps wrapped for many processes."""

    def weight(self, batch: Any) -> float | None:
        """How many terms the loss of a batch is the mean of; None where it is always as many.

        Micro-batches, of this and other processes, count in this proportion. A task may leave
        this method out.

        Args:
            batch: as the stream gave it, not yet on the device.
        """

    def evaluate(self, *, quick: bool, rank: int = 0, world_size: int = 1) -> Totals:
        """Sums and counts over this process's share of the held-out data.

        Args:
            quick: a small fixed share of it will do.
        """
