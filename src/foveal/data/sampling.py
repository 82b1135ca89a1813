"""Which examples come next: an endless shuffled order whose whole state is one integer.

The order of every pass over the data is a permutation that is computed, not stored, so a run over
a billion windows needs no table, resumes at any position, and may resume with another number of
processes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveal.common.hashing import mix

_ROUNDS = 4


def permute(index: np.ndarray, size: int, key: int) -> np.ndarray:
    """Send each index below `size` to its place in a pseudo-random permutation of `range(size)`.

    A Feistel network over the next even power of two, walked until the value falls below `size`.

    Args:
        index: integers of any shape, 0 <= index < size.
        key: chooses the permutation; the same key always gives the same one.
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    out = index.astype(np.uint64)
    todo = np.ones(out.shape, dtype=bool)
    while todo.any():
        out[todo] = _feistel(out[todo], half, key)
        todo = out >= size
    return out.astype(np.int64)


def _feistel(value: np.ndarray, half: np.uint64, key: int) -> np.ndarray:
    """One pass of a balanced Feistel network over values of 2 * half bits: a bijection."""
    low = np.uint64((1 << int(half)) - 1)
    left, right = value >> half, value & low
    for round_key in np.random.SeedSequence(key).generate_state(_ROUNDS, np.uint64):
        left, right = right, left ^ (mix(right ^ round_key) & low)
    return (left << half) | right


class ShuffledSampler:
    """Deals the indices of a data set, shuffled anew in every pass, without end.

    All processes hold the same position and take neighbouring slices of each global batch, so
    within a pass no example is seen twice, whatever their number.

    Args:
        num_items: size of the data set.
        batch_size: indices dealt to each process at a time.
        seed: chooses the order.
        rank, world_size: this process, and how many there are.
    """

    def __init__(
        self, num_items: int, batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        if num_items < 1 or batch_size < 1:
            raise ValueError(
                f"num_items and batch_size must be at least 1, got {num_items=}, {batch_size=}."
            )
        self.num_items, self.batch_size, self.seed = num_items, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.position = 0

    def next(self) -> tuple[np.ndarray, np.ndarray]:
        """The next batch of this process: (indices, passes), each int64 of shape (batch_size,)."""
        places = self.places()
        self.position += self.world_size * self.batch_size
        return self.at(places)

    def places(self) -> np.ndarray:
        """Where the next batch of this process lies in the endless order, int64 (batch_size,)."""
        first = self.position + self.rank * self.batch_size
        return np.arange(first, first + self.batch_size, dtype=np.int64)

    def at(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What lies at places of the endless order, (any,) int64: (indices, passes), likewise."""
        passes, rest = places // self.num_items, places % self.num_items
        out = np.empty_like(rest)
        for number in np.unique(passes):
            chosen = passes == number
            out[chosen] = permute(rest[chosen], self.num_items, self._key(int(number)))
        return out, passes

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold: the position, and what it is a position in."""
        return {"position": self.position, "seed": self.seed, "num_items": self.num_items}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken.

        Raises:
            ValueError: the state belongs to other data or another seed.
        """
        for name in ("num_items", "seed"):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"the checkpoint was taken with {name}={state[name]}, this run has "
                    f"{name}={getattr(self, name)}; resume with the same data and seed, "
                    "or start a new run."
                )
        self.position = int(state["position"])

    def _key(self, number: int) -> int:
        return (self.seed << 32) + number


def spread(count: int, most: int) -> Tensor:
    """Up to `most` numbers below `count`, evenly spread, (chosen,) int64; 0 means all of them."""
    chosen = min(most or count, count)
    return torch.linspace(0, count - 1, chosen, dtype=torch.float64).long()


ALL = ", all of it"
"""Behind the name of data that have no part to score on and are scored as a whole."""


def sample_name(name: str, most: int, count: int, unit: str) -> str:
    """What to call `most` of the `count` examples of some data."""
    return f"{name.removesuffix(ALL)}, a sample of {most:,} of {count:,} {unit}"


def sample(data: Any, most: int, unit: str) -> Any:
    """The data, or a sample of them that says so in its name; all of them where `most` is 0.

    Args:
        data: a set of examples with `name` and `subset(index, name)`.
    """
    if not most or len(data) <= most:
        return data
    chosen = spread(len(data), most)
    return data.subset(chosen, sample_name(data.name, most, len(data), unit))
