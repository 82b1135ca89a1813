"""A map whose rows lie on many ranks: who has which, and what layers ask of all of them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from foveal.common.dtypes import wide
from foveal.layers.rows import Rows
from foveal.parallel.moving import agreed, gather, of_all
from foveal.parallel.ranks import Ranks
from foveal.parallel.shares import Kept, lengths_of


class Image:
    """The image that a model is at: ranks, and how many rows each has of it."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks, self.lengths = ranks, (0,) * ranks.size

    def __deepcopy__(self, _: Any) -> Image:
        return Image(self.ranks)  # as many processes, whatever is copied

    def enter(self, own: int) -> None:
        """Ask all ranks how many rows they have."""
        self.lengths = lengths_of(self.ranks, own)


class Sizes:
    """How many rows every rank has of the maps of one layer: asked once for a size of images."""

    def __init__(self, image: Image) -> None:
        self.image, self._kept = image, Kept()

    def __deepcopy__(self, memo: Any) -> Sizes:
        return Sizes(copy.deepcopy(self.image, memo))

    def of(self, own: int, what: str = "") -> tuple[int, ...]:
        """Those of what a layer has several of, of which `own` are here.

        Raises:
            ValueError: the map is of another image than the one that the model is at.
        """
        key, ranks = (self.image.lengths, what), self.image.ranks
        found: tuple[int, ...] | None = self._kept.find(key)
        if found is None:
            found = lengths_of(ranks, own)
            self._kept.keep(key, found)
        if found[ranks.rank] != own:
            raise ValueError(
                f"a layer got {own} rows where images of {self.image.lengths} rows have "
                f"{found[ranks.rank]}: with activation checkpointing, the backward pass of an "
                "image comes before the forward pass of one of another size."
            )
        return found


class Shared(Rows):
    """The rows of a map, of which other ranks have some; one for each layer.

    Args:
        image: which the model is at.
    """

    here = False

    def __init__(self, image: Image) -> None:
        self._image, self._sizes, self._ranks = image, Sizes(image), image.ranks

    def __deepcopy__(self, memo: Any) -> Shared:
        return Shared(copy.deepcopy(self._image, memo))

    def count(self, own: int, what: str = "rows") -> int:
        return sum(self._sizes.of(own, what))

    def own(self, x: Tensor, dim: int, count: int) -> Tensor:
        before = self._sizes.of(count, "own")[: self._ranks.rank]
        return x.narrow(dim, sum(before), count)

    def all(self, x: Tensor, dim: int) -> Tensor:
        sizes = self._sizes.of(x.shape[dim], f"all {dim}")
        rows = gather(x.movedim(dim, 0), self._ranks, list(sizes))
        return rows.movedim(0, dim)

    def mean(self, x: Tensor) -> Tensor:
        values = wide(x)
        total = add_up(torch.stack([values.sum((2, 3)), pixels(values)]), self._ranks)
        return (total[0] / total[1]).to(x.dtype)

    def most(self, x: Tensor) -> Tensor:
        # as torch does, equal pixels share the gradient
        low = x.new_full((*x.shape[:2], 1), -torch.inf)
        found = torch.cat([x.flatten(2), low], 2).detach().amax(2)
        most = of_all(found, self._ranks).amax(0)
        equal, values = x == most[..., None, None], wide(x)
        sums = [torch.where(equal, values, 0).sum((2, 3)), equal.sum((2, 3)).to(values.dtype)]
        total = add_up(torch.stack(sums), self._ranks)
        mean = (total[0] / total[1]).to(x.dtype)
        return most + (mean - mean.detach())

    def agreed(self, x: Tensor) -> Tensor:
        """What rank 0 has drawn."""
        return agreed(x, self._ranks)


def pixels(x: Tensor) -> Tensor:
    """How many pixels a map (batch, dim, rows, columns) has here, for each (batch, dim)."""
    return x.new_full(x.shape[:2], x.shape[2] * x.shape[3])


def add_up(x: Tensor, ranks: Ranks) -> Tensor:
    """The sum over all ranks, in their order: the same on each."""
    return of_all(x, ranks).sum(0)
