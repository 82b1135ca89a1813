"""What is random about the examples of a batch: each draws alone, or all draw together."""

from __future__ import annotations

import copy
import math
from typing import Protocol

import numpy as np
import torch
from torch import Generator, Tensor

from foveal.common.hashing import STEP, mix


class Chance(Protocol):
    """Random numbers for the examples of a batch; whoever asks in the same order gets the same."""

    def uniform(self) -> Tensor:
        """One number of each example, (batch,) float, at least 0 and below 1."""

    def below(self, count: int) -> Tensor:
        """One whole number of each example, (batch,) int64, at least 0 and below `count`."""

    def choice(self, count: int, times: int) -> Tensor:
        """Which of `count` changes each example gets, `times` in a row: (times, batch) int64."""

    def coin(self) -> Tensor:
        """Heads or tails, (batch,) bool."""

    def share(self, alpha: float) -> Tensor:
        """Draws from Beta(alpha, alpha), (batch,) float64."""

    def normal(self, shape: tuple[int, ...], wanted: Tensor) -> Tensor:
        """Gaussian noise (batch, *shape), which may be anything where not `wanted` (batch,)."""

    def others(self) -> Tensor:
        """Places in the batch of the example that each one is mixed with, (batch,) int64."""

    def apart(self) -> Chance:
        """Numbers for what not every batch asks for, so that all go on alike behind it."""


class ByExample:
    """Every example draws by its place in the endless order alone.

    How the order is cut into batches, and who has which of them, changes nothing. A number is a
    hash of the seed, the place, and how many were drawn before.

    Args:
        seed: of the stream.
        places: of the examples in the order, int64 (batch,), the partner of each among them; see
            `partner`.
    """

    def __init__(self, seed: int, places: np.ndarray) -> None:
        key = np.random.SeedSequence([seed, 13]).generate_state(1, np.uint64)
        self._places, self._drawn = places, 0
        self._keys = mix(places.astype(np.uint64) * STEP ^ key)

    def apart(self) -> ByExample:
        found = copy.copy(self)
        found._keys, found._drawn = self._words(), 0
        return found

    def _words(self) -> np.ndarray:
        """64 random bits of each example, (batch,) uint64."""
        self._drawn += 1
        return mix(self._keys + np.array([self._drawn], np.uint64) * STEP)

    def _fraction(self) -> np.ndarray:
        """(batch,) float64, above 0 and below 1."""
        found: np.ndarray = ((self._words() >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
        return found

    def uniform(self) -> Tensor:
        words = (self._words() >> np.uint64(40)).astype(np.float32)
        return torch.from_numpy(words * np.float32(2**-24))

    def below(self, count: int) -> Tensor:
        words = (self._words() >> np.uint64(32)) * np.uint64(count) >> np.uint64(32)
        return torch.from_numpy(words.astype(np.int64))

    def choice(self, count: int, times: int) -> Tensor:
        return torch.stack([self.below(count) for _ in range(times)])

    def coin(self) -> Tensor:
        return self.uniform() < 0.5

    def share(self, alpha: float) -> Tensor:
        if alpha > 0.5:  # Ulrich's form for equal parameters, in Devroye 1986, IX.3.6
            radius = np.sqrt(1 - self._fraction() ** (2 / (2 * alpha - 1)))
            return torch.from_numpy((1 + radius * np.cos(2 * math.pi * self._fraction())) / 2)
        found, tries = np.full(len(self._keys), np.nan), self.apart()
        while np.isnan(found).any():  # Johnk's method, which takes 78 % of the draws or more
            a, b = (tries._fraction() ** (1 / alpha) for _ in range(2))
            taken = np.isnan(found) & (a + b > 0) & (a + b <= 1)
            found[taken] = a[taken] / (a + b)[taken]
        return torch.from_numpy(found)

    def normal(self, shape: tuple[int, ...], wanted: Tensor) -> Tensor:
        """(batch, *shape): of those that are `wanted` (batch,), zeros elsewhere."""
        seeds = self._words() >> np.uint64(1)
        noise = torch.zeros(len(seeds), *shape)
        for number in wanted.nonzero()[:, 0].tolist():
            random = torch.Generator().manual_seed(int(seeds[number]))
            torch.randn(shape, generator=random, out=noise[number])
        return noise

    def others(self) -> Tensor:
        order = np.argsort(self._places)
        found = np.searchsorted(self._places, partner(self._places), sorter=order)
        return torch.from_numpy(order[found])


def partner(places: np.ndarray) -> np.ndarray:
    """The place of the example that each is mixed with: they come in pairs, in shuffled order."""
    found: np.ndarray = places ^ 1
    return found


class ByBatch:
    """All examples of a batch draw from one generator, so that another cut draws otherwise.

    What runs go on with that began so.

    Args:
        generator: of the batch.
        count: examples in it.
    """

    def __init__(self, generator: Generator, count: int) -> None:
        self._generator, self._count = generator, count

    def uniform(self) -> Tensor:
        return torch.rand(self._count, generator=self._generator)

    def below(self, count: int) -> Tensor:
        return torch.randint(0, count, (self._count,), generator=self._generator)

    def choice(self, count: int, times: int) -> Tensor:
        found = torch.randint(0, count, (times,), generator=self._generator)
        return found[:, None].expand(times, self._count)

    def coin(self) -> Tensor:
        return (torch.rand((), generator=self._generator) < 0.5).expand(self._count)

    def share(self, alpha: float) -> Tensor:
        while True:  # Johnk's method
            drawn = torch.rand(2, generator=self._generator, dtype=torch.float64)
            a, b = (drawn ** (1 / alpha)).tolist()
            if 0 < a + b <= 1:
                return torch.full((self._count,), a / (a + b), dtype=torch.float64)

    def normal(self, shape: tuple[int, ...], wanted: Tensor) -> Tensor:
        """(batch, *shape), whatever is `wanted` (batch,)."""
        return torch.randn((self._count, *shape), generator=self._generator)

    def others(self) -> Tensor:
        return torch.randperm(self._count, generator=self._generator)

    def apart(self) -> Chance:
        return self
