"""One stream for every data set: the order of its examples, its place, and what is drawn there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Generator, Tensor

from foveal.data.sampling import ShuffledSampler

_BY_PLACE, _BY_PROCESS = "by place", "by process"


class Source(Protocol):
    """Examples that are read by number: all that a new data set must be."""

    def __len__(self) -> int:
        """How many there are."""

    def read(self, indices: Tensor) -> Any:
        """Those at `indices`, int64 (batch,), as a batch: a tensor, a tuple or a dict of them."""


@runtime_checkable
class VariedSource(Protocol):
    """Examples that are cut, mirrored or chosen anew in every pass."""

    def __len__(self) -> int:
        """How many there are."""

    def draw(self, draw: Draw) -> Any:
        """The batch of a draw; what is random about it comes from the draw alone."""


@dataclass(frozen=True)
class Draw:
    """Which examples a batch is made of, and what is random about them.

    Attributes:
        indices: of examples, int64 (batch,).
        passes: the pass over the data that each belongs to, int64 (batch,).
        seed: of the stream.
        place: where the batch begins in the endless order, and what decides its generator.
    """

    indices: Tensor
    passes: Tensor
    seed: int
    place: tuple[int, int]

    @cached_property
    def generator(self) -> Generator:
        """Made by the seed and the place alone, so that a resumed run draws the same."""
        words = np.random.SeedSequence([self.seed, *self.place, 7]).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(words[0] >> 1))


class Stream:
    """Endless shuffled batches whose position is one integer.

    A batch depends on its place in the order and on nothing else: several processes deal together
    what one would deal alone.

    Args:
        source: where the examples come from.
        batch_size, seed, rank, world_size: as in ShuffledSampler.
    """

    def __init__(
        self,
        source: Source | VariedSource,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.source = source
        self.sampler = ShuffledSampler(len(source), batch_size, seed, rank, world_size)
        self._batch: Callable[[Draw], Any] = (
            source.draw
            if isinstance(source, VariedSource)
            else lambda draw: source.read(draw.indices)
        )
        self._draws = _BY_PLACE

    def next(self) -> Any:
        """The next batch of this process."""
        sampler = self.sampler
        place = (sampler.position + sampler.rank * sampler.batch_size, 0)
        if self._draws == _BY_PROCESS:
            place = (sampler.position, sampler.rank)
        indices, passes = map(torch.from_numpy, sampler.next())
        return self._batch(Draw(indices, passes, sampler.seed, place))

    def state_dict(self) -> dict[str, Any]:
        """The position in the data."""
        return {**self.sampler.state_dict(), "draws": self._draws}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a saved position.

        Raises:
            ValueError: the state belongs to other data or another seed, or was taken by an earlier
                foveal that drew other numbers.
        """
        # what earlier ones wrote says nothing of draws; a run goes on with those it began with
        draws = state.get("draws", _BY_PROCESS)
        if draws == _BY_PROCESS and getattr(self.source, "refuses_old_draws", False):
            raise ValueError(
                "the checkpoint was taken by an earlier foveal, which mirrored these pictures by "
                "other random numbers; start a new run."
            )
        self.sampler.load_state_dict(state)
        self._draws = draws
