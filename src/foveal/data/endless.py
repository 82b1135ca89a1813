"""Streams that have no length: a fixed number of logical readers, whose items take turns.

Example number p of the endless order is item p // R of reader p % R. The number R of readers does
not depend on how many processes there are, so the position is one integer, which says how far each
reader has got, and any number of processes goes on from it exactly. A reader that comes to its end
begins again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from foveal.common.words import shorten
from foveal.data.stream import Draw, Source, Stream, VariedSource

READERS = 64
"""Logical readers at most; a power of two, as numbers of processes usually are."""


class Readers:
    """The items of logical readers in their endless order.

    Args:
        start: number of a reader -> its items from the first on.
        count: how many readers there are.
        name: of the data, for messages.

    Attributes:
        taken: items that each reader has given here, by its number, repeated ones counted too.
    """

    def __init__(self, start: Callable[[int], Iterator[Any]], count: int, name: str) -> None:
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count=}.")
        self.start, self.count, self.name = start, count, name
        self.taken: dict[int, int] = {}
        self._open: dict[int, _Reader] = {}

    def at(self, places: Sequence[int]) -> list[Any]:
        """The items at places of the order; of one reader those that come later follow.

        Raises:
            ValueError: a reader has no items at all, or fails.
        """
        found = []
        for place in places:
            number, item = place % self.count, place // self.count
            reader = self._open.get(number)
            if reader is None or reader.done > item:  # back, as after a resume
                reader = self._open[number] = _Reader(lambda n=number: self.start(n))  # type: ignore[misc]
            before, called = reader.read, f"reader {number + 1} of {self.count} of {self.name}"
            try:
                found.append(reader.item(item))
            except Exception as error:  # files and networks have errors of every kind
                del self._open[number]
                why = shorten(str(error), 200) or type(error).__name__
                raise ValueError(
                    f"{called} stopped at item {item:,}: {why.rstrip('.')}."
                ) from error
            self.taken[number] = self.taken.get(number, 0) + reader.read - before
        return found

    def consumed(self, position: int) -> list[int]:
        """Items of each reader before a position in the order."""
        return [max(0, -(-(position - number) // self.count)) for number in range(self.count)]


@dataclass
class _Reader:
    """One reader: its items, again and again."""

    start: Callable[[], Iterator[Any]]
    done: int = 0
    read: int = 0
    length: int = 0
    items: Iterator[Any] | None = None

    def item(self, number: int) -> Any:
        """The item of a number, which is not below `done`; ValueError where there are none."""
        while True:
            if self.items is None:
                self.items = self.start()
                if self.length:  # a whole pass changes nothing
                    self.done += (number - self.done) // self.length * self.length
            for item in self.items:
                self.done, self.read = self.done + 1, self.read + 1
                if self.done > number:
                    return item
            if not self.done:
                raise ValueError("it has no items; name other data")
            self.length, self.items = self.length or self.done, None


@runtime_checkable
class EndlessSource(Protocol):
    """Examples of logical readers, in the order in which they come."""

    readers: Readers

    def batch(self, items: list[Any], draw: Draw) -> Any:
        """The items of a draw as a batch."""


class EndlessStream:
    """Endless batches of logical readers, whose position is one integer.

    Processes take the examples of a batch by turns. If their number divides that of the readers,
    each reads some of them alone; else one passes over what others take.

    Args:
        source: what is read.
        batch_size, seed, rank, world_size: as in `Stream`.
    """

    def __init__(
        self,
        source: EndlessSource,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.source, self.batch_size, self.seed = source, batch_size, seed
        self.rank, self.world_size, self.position = rank, world_size, 0

    def next(self) -> Any:
        """The next batch of this process."""
        # by turns, so that as many processes as divide the number of readers share them out
        places = np.arange(self.batch_size, dtype=np.int64) * self.world_size
        places += self.position + self.rank
        self.position += self.world_size * self.batch_size
        indices = torch.from_numpy(places)
        draw = Draw(indices, torch.zeros_like(indices), self.seed, places)
        return self.source.batch(self.source.readers.at(places.tolist()), draw)

    def state_dict(self) -> dict[str, Any]:
        """The position: of reader r, (position - r) / readers items are consumed, rounded up."""
        return {
            "position": self.position,
            "readers": self.source.readers.count,
            "seed": self.seed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a saved position, with any number of processes.

        Raises:
            ValueError: the state belongs to other data or another seed.
        """
        for name, here in (("readers", self.source.readers.count), ("seed", self.seed)):
            if state.get(name) != here:
                raise ValueError(
                    f"the checkpoint was taken with {name}={state.get(name)}, this run has "
                    f"{name}={here}; resume with the same data and seed, or start a new run."
                )
        self.position = int(state["position"])


def stream_of(
    source: Source | VariedSource | EndlessSource,
    batch_size: int,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> Stream | EndlessStream:
    """What deals a source: shuffled where its examples have numbers, in order where they end not.

    Args:
        batch_size, seed, rank, world_size: as in `Stream`.
    """
    if isinstance(source, EndlessSource):
        return EndlessStream(source, batch_size, seed, rank, world_size)
    return Stream(source, batch_size, seed, rank, world_size)


def how_many(files: int) -> int:
    """Readers for data in so many files, each of which has one file at least: a power of two."""
    return 1 << int(math.log2(max(1, min(READERS, files))))
