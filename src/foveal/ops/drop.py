"""Dropout whose draws are a hash of where things stand: a part drops what the whole would."""

from __future__ import annotations

import torch
from torch import Tensor

from foveal.common.hashing import mixed, unsigned_shift

_BITS = 53


class ByPlace(float):
    """A probability of dropping, whose draws depend on places alone.

    Attributes:
        number: of the layer, so that each draws otherwise.
        seed: of the draws, or one for each row of the batch (batch,) int64; None where nobody
            says it yet.
        queries, keys: where the queries (queries,) and keys (keys,) of a call of attention stand.
    """

    number: int = 0
    seed: int | Tensor | None = None
    queries: Tensor | None = None
    keys: Tensor | None = None

    @classmethod
    def of(cls, rate: float, number: int = 0, seed: int | Tensor | None = None) -> ByPlace:
        """That of a layer, or of a pass through it; seed: one, or one of each row (batch,)."""
        found = cls(rate)
        found.number, found.seed = number, seed
        return found

    def at(self, queries: Tensor, keys: Tensor) -> ByPlace:
        """For queries (queries,) and keys (keys,) at these places, int64."""
        found = ByPlace.of(self, self.number, self.seed)
        found.queries, found.keys = queries, keys
        return found

    def words(self, batch: int) -> Tensor:
        """Seeds, places of queries and of keys for an operator: (batch + queries + keys,).

        Raises:
            ValueError: nobody said them.
        """
        if self.seed is None or self.queries is None or self.keys is None:
            raise ValueError(
                f"dropout_p={float(self)} by place needs a seed and places, got none."
            )
        seeds = self.seed
        if not isinstance(seeds, Tensor):
            one = torch.tensor(seeds, dtype=torch.int64, device="cpu")
            seeds = mixed(one, torch.arange(batch, device="cpu"))
        return torch.cat([seeds.cpu(), self.queries.cpu(), self.keys.cpu()])


def kept(rate: float, words: Tensor) -> Tensor:
    """Which of some words (any shape), as from `mixed`, are not dropped: bool of their shape."""
    return unsigned_shift(words, 64 - _BITS) >= int(float(rate) * (1 << _BITS))
