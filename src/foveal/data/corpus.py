"""Pieces of files as one long array of bytes."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from foveal.data.file_reader import OpenFiles
from foveal.data.remote import BLOCKS, RemoteFile
from foveal.data.sampling import sample_name

_PIECES = 16
_PIECE, _SAMPLED, _HASHED_WHOLE = 1 << 20, 256, 1 << 30


class Texts(Protocol):
    """Many texts as one file: what `Span` reads that lies in no file of its own."""

    def read_into(self, out: np.ndarray, start: int) -> None:
        """Fill `out`, uint8 (length,), with the bytes from `start`."""

    def begins(self, places: np.ndarray) -> np.ndarray:
        """Where the text begins that each place is in, int64 like `places` (n,)."""


@dataclass(frozen=True)
class Span:
    """The bytes `start <= position < stop` of one file.

    Attributes:
        path: where it lies, on this machine or behind an address; or texts that are no file.
        held: what the file holds when it is unpacked and decoded; None to read it as it lies.
    """

    path: Path | RemoteFile | Texts
    start: int
    stop: int
    held: bytes | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return self.stop - self.start


class Corpus:
    """Spans of files read as one long array of bytes, without loading them.

    Attributes:
        name: what to call the corpus in reports.
        spans: the pieces, in order; none is empty.
    """

    def __init__(self, name: str, spans: Sequence[Span]) -> None:
        self.name = name
        self.spans = tuple(span for span in spans if len(span))
        # _starts[i] is the position of span i in the whole; the last entry is the length
        self._starts = np.cumsum([0, *map(len, self.spans)])
        self._files = OpenFiles(span.path for span in self.spans if span.held is None)
        self._has_far = any(isinstance(span.path, RemoteFile) for span in self.spans)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, start: int, length: int) -> np.ndarray:
        """`length` bytes from position `start`, as a new uint8 array of shape (length,).

        Raises:
            ValueError: a window outside, or a file that has changed since the corpus was opened.
        """
        if start < 0 or length < 0 or start + length > len(self):
            raise ValueError(
                f"the window must lie inside the {len(self)} bytes of {self.name}, "
                f"got {start=}, {length=}."
            )
        out = np.empty(length, dtype=np.uint8)
        for span, first, at, size in self._pieces(start, length):
            self._fill(out[at : at + size], span, first)
        return out

    def warm(self, starts: Sequence[int], length: int) -> None:
        """Fetch together what lies far away of windows that are read next, `length` bytes each."""
        if not self._has_far:
            return
        wanted = defaultdict(list)
        for start in starts:
            for span, first, _, size in self._pieces(start, length):
                if isinstance(span.path, RemoteFile) and span.held is None:
                    wanted[span.path].append((first, size))
        for file, places in wanted.items():
            BLOCKS.warm(file, places)

    def _pieces(self, start: int, length: int) -> Iterator[tuple[Span, int, int, int]]:
        """What a window is made of: span, place in its file, place in the window, size."""
        filled = 0
        index = int(np.searchsorted(self._starts, start, side="right")) - 1
        while filled < length:
            span = self.spans[index]
            offset = start + filled - int(self._starts[index])
            piece = min(length - filled, len(span) - offset)
            yield span, span.start + offset, filled, piece
            filled, index = filled + piece, index + 1

    def places(self, start: int, length: int) -> np.ndarray:
        """Where the bytes of a window stand in their files, or in what of these it holds.

        Returns:
            (length,) int64: 0, 1, 2, ... from the beginning of the window, and of each file.
        """
        whole = np.arange(start, start + length)
        number = np.searchsorted(self._starts, whole, side="right") - 1
        first = self._starts[number]
        for one in np.unique(number).tolist():
            span, mine = self.spans[one], number == one
            if not isinstance(span.path, Path | RemoteFile):
                offset = int(self._starts[one]) - span.start
                began = span.path.begins(whole[mine] - offset) + offset
                first[mine] = np.maximum(first[mine], began)
        return whole - np.maximum(first, start)

    def checksum(self) -> str:
        """The first 12 hex digits of a SHA-256: names the data beside a score.

        Of all bytes; of more than a GiB, of their number and 256 pieces spread over them, so
        that the end of a training does not wait for minutes.
        """
        digest, starts = hashlib.sha256(), [*range(0, len(self), _PIECE)]
        if len(self) > _HASHED_WHOLE:
            digest.update(str(len(self)).encode())
            last = len(self) - _PIECE
            starts = [last * number // (_SAMPLED - 1) for number in range(_SAMPLED)]
        for start in starts:
            digest.update(self.read(start, min(_PIECE, len(self) - start)).tobytes())
        return digest.hexdigest()[:12]

    def _fill(self, out: np.ndarray, span: Span, start: int) -> None:
        if span.held is None:
            self._files.read_into(span.path, out, start)
        else:
            out[:] = np.frombuffer(span.held, np.uint8, len(out), start)


def _told(span: Span) -> tuple[object, ...]:
    """What a piece is, unread."""
    key = span.path.key() if isinstance(span.path, RemoteFile) else str(span.path)
    return key, span.start, span.stop


def sample_bytes(corpus: Corpus, most: int) -> Corpus:
    """The bytes, or 16 pieces spread evenly over them, with the same end; 0 means all of them."""
    if not most or len(corpus) <= most:
        return corpus
    pieces = min(_PIECES, most)
    starts = torch.linspace(0, len(corpus) - most // pieces, pieces, dtype=torch.float64).long()
    spans = []
    for number, start in enumerate(starts.tolist()):
        size = most // pieces + (number < most % pieces)
        spans += _cut(corpus, min(start, len(corpus) - size), size)
    return Corpus(sample_name(corpus.name, most, len(corpus), "bytes"), spans)


def _cut(corpus: Corpus, start: int, size: int) -> list[Span]:
    """The spans of `size` bytes from `start`."""
    found, before = [], 0
    for span in corpus.spans:
        first, last = max(start - before, 0), min(start + size - before, len(span))
        if first < last:
            found.append(replace(span, start=span.start + first, stop=span.start + last))
        before += len(span)
    return found
