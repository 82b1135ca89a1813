"""Bytes as language-model data: shuffled windows to train on, ordered ones to score."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from foveal.data.sampling import permute
from foveal.data.stream import Draw, Stream

IGNORED = -100
"""Target of a position that is not scored, as in `torch.nn.functional.cross_entropy`."""


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Where the bytes come from and how they are cut.

    Attributes:
        path: "stdlib" (the source of Python's standard library), a file (.gz, .bz2, .xz and .zst
            are unpacked), a folder or a glob. Folders or files named train and valid or test are
            the parts.
        valid: another such path to score on; then all else of `path` is trained on.
        column: the column that holds the text, where the data are tables (.csv, .tsv, .jsonl,
            .json, .parquet).
        context: bytes that a window holds.
        pack: the files in a window are documents of their own (packing): nothing is read across
            their borders, positions restart, and no loss asks for the first byte of a file. False:
            a window is one text, wherever files begin.
    """

    path: str = "stdlib"
    valid: str = ""
    column: str = ""
    context: int = 256
    pack: bool = False


class Readable(Protocol):
    """A long array that is read in pieces: bytes of a `Corpus`, tokens of a `TokenCorpus`."""

    name: str

    def __len__(self) -> int: ...

    def read(self, start: int, length: int) -> np.ndarray:
        """`length` numbers from `start` on, (length,)."""

    def warm(self, starts: Sequence[int], length: int) -> None:
        """Make ready for windows of that length which are read next."""

    def places(self, start: int, length: int) -> np.ndarray:
        """Where they stand in their documents, (length,) int64."""


class TextWindows:
    """The windows of a corpus, cut at a new random offset in every pass.

    So windows differ from pass to pass, and every byte meets every position.

    Args:
        corpus: the bytes or tokens to train on.
        context: of them per window; the window's successor byte is the last target.
        pack: as in TextConfig.
    """

    def __init__(self, corpus: Readable, context: int, pack: bool = False) -> None:
        check_context(corpus, context)
        self.corpus, self.context, self.pack = corpus, context, pack
        # one window is kept in reserve for the offset, where the corpus is long enough for it
        self._count = max(1, (len(corpus) - 1) // context - 1)
        self._slack = max(1, min(context, len(corpus) - self._count * context))

    def __len__(self) -> int:
        return self._count

    def draw(self, draw: Draw) -> tuple[Tensor, ...]:
        """(inputs, targets), each int64 of shape (batch, context); positions too, if packed."""
        offsets = permute(draw.passes.numpy() % self._slack, self._slack, draw.seed + 1)
        starts = draw.indices.numpy() * self.context + offsets
        self.corpus.warm(starts.tolist(), self.context + 1)
        rows = [self.corpus.read(int(start), self.context + 1) for start in starts]
        tokens = torch.from_numpy(np.stack(rows).astype(np.int64))
        if not self.pack:
            return tokens[:, :-1], tokens[:, 1:]
        found = [self.corpus.places(int(start), self.context + 1) for start in starts]
        places = torch.from_numpy(np.stack(found))
        targets = tokens[:, 1:].masked_fill(places[:, 1:] == 0, IGNORED)
        return tokens[:, :-1], targets, places[:, :-1]


class TextStream(Stream):
    """Endless batches of `TextWindows` in shuffled order, resumable to the bit.

    Args:
        corpus, context: see `TextWindows`.
        batch_size, seed, rank, world_size: see `ShuffledSampler`.
    """

    def __init__(
        self,
        corpus: Readable,
        context: int,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(TextWindows(corpus, context), batch_size, seed, rank, world_size)


def check_context(corpus: Readable, context: int) -> None:
    """Raise ValueError unless the corpus holds at least one window and its successor byte."""
    if context < 1:
        raise ValueError(f"context must be at least 1, got {context=}.")
    if len(corpus) < context + 1:
        raise ValueError(
            f"{corpus.name} has {len(corpus)} bytes, but context={context} needs at least "
            f"{context + 1}; use a longer text or a shorter context."
        )


def scoring_windows(
    corpus: Readable,
    context: int,
    *,
    stride: int | None = None,
    limit: int | None = None,
    pack: bool = False,
) -> Iterator[tuple[Tensor, ...]]:
    """Windows that score every byte but the first exactly once, in order, the same every time.

    Args:
        context: bytes per window.
        stride: bytes newly scored by each window; `context` (the default) scores every window
            from a cold start, a smaller one gives each scored byte at least `context - stride`
            bytes of history (but those of the first window).
        limit: use only so many windows, spread evenly over the corpus.
        pack: as in TextConfig; the first byte of a file is scored too, as what follows the last
            one of the file before.

    Yields:
        (inputs, targets), int64 of shape (context,) or shorter at the end; targets that another
        window scores are `IGNORED`. Positions of the inputs too, if packed.
    """
    stride = context if stride is None else stride
    if not 1 <= stride <= context:
        raise ValueError(f"stride must lie between 1 and context={context}, got {stride=}.")
    check_context(corpus, 1)
    # a window is named by the end of the targets it scores; how many there are is only counted,
    # for a corpus may have more of them than there is memory for their numbers
    first, last = min(context, len(corpus) - 1), len(corpus) - 1
    count = 1 + -(-(last - first) // stride)
    chosen: Any = range(count)
    if limit is not None and limit < count:
        chosen = np.linspace(0, count - 1, limit).round().astype(int)
    for index in chosen:
        ends = [min(last, first + (int(index) + k) * stride) for k in (-1, 0)]
        yield _window(corpus, context, ends[0] if index else 0, ends[1], stride, pack)


def _window(
    corpus: Readable, context: int, scored_from: int, end: int, stride: int, pack: bool
) -> tuple[Tensor, ...]:
    """The window that ends at `end` and scores the targets after `scored_from`."""
    start = scored_from if stride == context else max(0, end - context)
    tokens = torch.from_numpy(corpus.read(start, end + 1 - start).astype(np.int64))
    targets = tokens[1:].clone()
    targets[: scored_from - start] = IGNORED
    if not pack:
        return tokens[:-1], targets
    return tokens[:-1], targets, torch.from_numpy(corpus.places(start, end - start))


def encode(text: str) -> list[int]:
    """A string as byte tokens (UTF-8); what a terminal gave that is no UTF-8 as it was."""
    return list(text.encode("utf-8", errors="surrogateescape"))


def decode(tokens: list[int] | Tensor) -> str:
    """Byte tokens (length) as a string; what is no UTF-8 becomes the replacement character."""
    values = tokens.tolist() if isinstance(tokens, Tensor) else tokens
    return bytes(values).decode("utf-8", errors="replace")
