"""Token maps of growing size, each of which reads those before it (VAR)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveal.patterns.base import Overlap, Pattern
from foveal.patterns.sizes import pair
from foveal.patterns.tiling import Tiling, rectangle


@dataclass(frozen=True)
class NextScale(Pattern):
    """An image as token maps of growing size: a map reads itself whole, and all smaller ones.

    Tian et al., "Visual Autoregressive Modeling: Scalable Image Generation via Next-Scale
    Prediction" (2024). Maps stand one after the other, each in raster order. All tokens of a map
    are predicted at once, so it is causal from map to map and not from token to token.

    Args:
        sides: of the maps, ints for squares or (height, width), in the order of the sequence.

    Raises:
        ValueError: there is no side, or one is no positive int; in use, a sequence that is longer
            than all maps. A shorter one is cut, as while an image is being made.
    """

    sides: tuple[Any, ...]

    always_reads = True

    def __post_init__(self) -> None:
        if not isinstance(self.sides, tuple | list) or not self.sides:
            raise ValueError(f"sides must be a list of at least one side, got {self.sides!r}.")
        for number, side in enumerate(self.sides):
            pair(side, f"sides[{number}]")
        plain = tuple(tuple(one) if isinstance(one, list) else one for one in self.sides)
        object.__setattr__(self, "sides", plain)

    @property
    def ends(self) -> tuple[int, ...]:
        """Where each map ends."""
        sizes = (pair(side, "sides") for side in self.sides)
        return tuple(itertools.accumulate(height * width for height, width in sizes))

    @property
    def is_causal(self) -> bool:
        return self.ends[-1] == len(self.sides)

    @property
    def natural_length(self) -> int:
        return self.ends[-1]

    def check_length(self, length: int) -> None:
        super().check_length(length)
        if length > self.ends[-1]:
            raise ValueError(
                f"length must be at most {self.ends[-1]}, the tokens of all maps of {self}, got "
                f"{length=}."
            )

    def scale(self, index: Tensor) -> Tensor:
        """Number of the map of each position, of the same shape."""
        found = torch.zeros_like(index)
        for end in self.ends:
            found = found + (index >= end)
        return found

    def allows(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        return self.scale(k_idx) <= self.scale(q_idx)

    def overlap(self, q_first: Tensor, q_last: Tensor, k_first: Tensor, k_last: Tensor) -> Overlap:
        return (
            self.scale(k_first) <= self.scale(q_last),
            self.scale(k_last) <= self.scale(q_first),
        )

    def _part(self, first: int, count: int, length: int) -> Tiling:
        groups = []
        for start, end in zip((0, *self.ends), self.ends, strict=False):
            queries = (max(start, first), min(end, first + count))
            groups += rectangle(*queries, 0, min(end, length))
        return Tiling(count, length, tuple(groups)).shift(-first, 0, count, length)

    def num_pairs(self, length: int) -> int:
        ends = [min(end, length) for end in self.ends]
        return sum((end - start) * end for start, end in zip([0, *ends], ends, strict=False))
