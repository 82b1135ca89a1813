"""Blocks of files that lie far away, kept up to so many bytes, the longest unread thrown away."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from foveal.common.locks import thread_lock

BLOCK, MOST = 1 << 18, 1 << 28
"""Bytes of a block, and of all that a process keeps, unless told otherwise."""

_AT_ONCE = 32  # blocks of one request at most


class RangeFile(Protocol):
    """A file of which any range can be asked for."""

    @property
    def size(self) -> int:
        """In bytes."""

    def key(self) -> Hashable:
        """Its name, and what tells that it is still the same."""

    def fetch(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes first <= place < last of each range, asked for together."""


class BlockCache:
    """What has been read of far files, in whole blocks, for all threads of a process.

    Args:
        most: bytes that are kept at most.
        block: bytes that are fetched at least, where the file has so many.
    """

    def __init__(self, most: int = MOST, block: int = BLOCK) -> None:
        if block < 1 or most < block:
            raise ValueError(
                f"block must be at least 1 and most at least a block, got {most=}, {block=}."
            )
        self.most, self.block = most, block
        self._blocks: OrderedDict[tuple[Hashable, int], bytes] = OrderedDict()
        self._bytes = 0
        self._lock = thread_lock(self, "_lock")

    def __len__(self) -> int:
        """The bytes that are kept now."""
        return self._bytes

    def read_into(self, file: RangeFile, out: np.ndarray, start: int) -> None:
        """Fill `out`, uint8 (length,), with the bytes of a file from `start`."""
        first, last = start // self.block, -(-(start + len(out)) // self.block)
        for begin in range(first, last, _AT_ONCE):
            numbers = range(begin, min(last, begin + _AT_ONCE))
            for number, block in self._found(file, numbers).items():
                low, high = number * self.block, number * self.block + len(block)
                cut = slice(max(low, start), min(high, start + len(out)))
                piece = np.frombuffer(block, np.uint8)[cut.start - low : cut.stop - low]
                out[cut.start - start : cut.stop - start] = piece

    def warm(self, file: RangeFile, places: Sequence[tuple[int, int]]) -> None:
        """Fetch what is missing of many (start, length) of a file together, for reads to come."""
        numbers = {
            number
            for start, length in places
            for number in range(start // self.block, -(-(start + length) // self.block))
        }
        # more than is kept would be thrown away before it is read
        self._found(file, sorted(numbers)[: max(1, self.most // self.block // 2)])

    def _found(self, file: RangeFile, numbers: Sequence[int]) -> dict[int, bytes]:
        """Blocks by number; those that are missing are fetched, neighbours in one request."""
        key, found = file.key(), {}
        with self._lock:
            for number in numbers:
                if (block := self._blocks.get((key, number))) is not None:
                    self._blocks.move_to_end((key, number))
                    found[number] = block
        missing = list(_runs([n for n in numbers if n not in found]))
        if missing:
            ranges = [(a * self.block, min(b * self.block, file.size)) for a, b in missing]
            for (first, last), piece in zip(missing, file.fetch(ranges), strict=True):
                for number in range(first, last):
                    low = (number - first) * self.block
                    found[number] = piece[low : low + self.block]
                    self._keep((key, number), found[number])
        return found

    def _keep(self, key: tuple[Hashable, int], block: bytes) -> None:
        with self._lock:
            before = self._blocks.pop(key, b"")  # another thread may have fetched it too
            self._blocks[key] = block
            self._bytes += len(block) - len(before)
            while self._bytes > self.most:
                self._bytes -= len(self._blocks.popitem(last=False)[1])


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Growing numbers as (first, last + 1) of neighbours, at most so many in one."""
    first: Any = None
    for here, following in pairwise([*numbers, -1]):
        first = here if first is None else first
        if following != here + 1 or following - first >= _AT_ONCE:
            yield first, here + 1
            first = None
