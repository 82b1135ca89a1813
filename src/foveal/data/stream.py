"""One stream for every data set: the order of its examples, its place, and what is drawn there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Generator, Tensor

from foveal.data.chance import ByBatch, ByExample, Chance, partner
from foveal.data.sampling import ShuffledSampler

BY_EXAMPLE, BY_PLACE, BY_PROCESS = "by example", "by place", "by process"
"""What decides the random numbers of an example: its place alone, where its batch begins in the
order, or what process has it; the last two of runs that began so."""


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
        places: of the examples in the endless order, int64 (batch,).
        process: whose they are, in runs that count it.
        draws: BY_EXAMPLE, or what else decides the random numbers.
        at: places in the order -> indices and passes.
    """

    indices: Tensor
    passes: Tensor
    seed: int
    places: np.ndarray
    process: int = 0
    draws: str = BY_EXAMPLE
    at: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None

    @cached_property
    def chance(self) -> Chance:
        """Random numbers of each example, which do not depend on what else is in the batch."""
        if self.draws == BY_EXAMPLE:
            return ByExample(self.seed, self.places)
        return ByBatch(self.generator, len(self.indices))

    @cached_property
    def generator(self) -> Generator:
        """One for the batch, made by the seed and where it begins: a resumed run draws the same.

        Another number of processes does not; `chance` and `seeds` serve each example alone.
        """
        place = (int(self.places[0]), self.process)
        words = np.random.SeedSequence([self.seed, *place, 7]).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(words[0] >> 1))

    @property
    def seeds(self) -> list[int]:
        """One for each example, by its place in the order: below 2 ** 32, for NumPy."""
        words = ([self.seed, place, self.process, 11] for place in self.places.tolist())
        return [int(np.random.SeedSequence(one).generate_state(1)[0]) for one in words]

    def with_partners(self) -> Draw:
        """The same examples, and behind them those of others that they are mixed with."""
        if self.draws != BY_EXAMPLE or self.at is None:
            return self
        missing = np.setdiff1d(partner(self.places), self.places)
        if not len(missing):
            return self
        places = np.concatenate([self.places, missing])
        indices, passes = map(torch.from_numpy, self.at(places))
        return replace(self, places=places, indices=indices, passes=passes)


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
        self._draws = BY_EXAMPLE

    def next(self) -> Any:
        """The next batch of this process."""
        sampler, process = self.sampler, 0
        places = sampler.places()
        if self._draws == BY_PROCESS:  # places that no process has, and are seeds all the same
            process, places = sampler.rank, places - places[0] + sampler.position
        indices, passes = map(torch.from_numpy, sampler.next())
        rest = (sampler.seed, places, process, self._draws, sampler.at)
        return self._batch(Draw(indices, passes, *rest))

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
        draws = state.get("draws", BY_PROCESS)
        if draws == BY_PROCESS and getattr(self.source, "refuses_old_draws", False):
            raise ValueError(
                "the checkpoint was taken by an earlier foveal, which mirrored these pictures by "
                "other random numbers; start a new run."
            )
        self.sampler.load_state_dict(state)
        self._draws = draws
