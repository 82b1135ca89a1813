"""Pictures of one size with captions: held in memory, or read when they are asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveal.data.examples import Examples
from foveal.data.images import lazily
from foveal.data.sampling import spread


class CaptionedSet:
    """Pictures of one size with captions, held in memory.

    Args:
        name: what to call them in reports.
        pixels: uint8 (n, 3, size, size).
        captions: one or more for each picture.
        skipped: what was wrong with files that were left out.
    """

    def __init__(
        self,
        name: str,
        pixels: Tensor,
        captions: Sequence[Sequence[str]],
        skipped: Sequence[str] = (),
    ) -> None:
        self.name, self.pixels = name, pixels
        self.captions, self.skipped = [list(texts) for texts in captions], list(skipped)

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def all_captions(self) -> list[str]:
        """Every caption of every picture."""
        return [text for texts in self.captions for text in texts]

    @property
    def counts(self) -> Tensor:
        """Captions of each picture, int64 (n,)."""
        return torch.tensor([len(texts) for texts in self.captions])

    def some_captions(self, most: int) -> list[str]:
        """Captions to learn words from: all of them; of sets that are not held, some."""
        return self.all_captions

    def first_captions(self, index: Tensor | None = None) -> list[str]:
        """One caption for each picture, or for those of index (count)."""
        numbers = range(len(self)) if index is None else index.tolist()
        return [self.captions[i][0] for i in numbers]

    def images(self, index: Tensor | None = None) -> Tensor:
        """Pictures (n, 3, size, size), float from 0 to 1."""
        return (self.pixels if index is None else self.pixels[index]).float() / 255

    def subset(self, index: Tensor, name: str) -> CaptionedSet:
        """Some of the pictures, in the order of `index` (count)."""
        captions = [self.captions[i] for i in index.tolist()]
        return CaptionedSet(name, self.pixels[index], captions, self.skipped)

    def checksum(self) -> str:
        """Eight hexadecimal digits that other pictures or captions would change."""
        digest = hashlib.sha256(json.dumps(self.captions).encode())
        chosen = torch.linspace(0, len(self) - 1, min(64, len(self))).long()
        digest.update(self.pixels[chosen].contiguous().numpy().tobytes())
        return digest.hexdigest()[:8]


class LazyCaptionedSet(CaptionedSet):
    """Captioned pictures of one size that are decoded when they are asked for.

    Args:
        examples: those, unread; with `texts`.
        size: of the pictures.
        skipped: what was wrong with files that were left out.
    """

    def __init__(self, examples: Examples, size: int, skipped: Sequence[str] = ()) -> None:
        self.name, self.skipped, self.size = examples.name, list(skipped), size
        self.examples = examples
        self.pixels: Any = LazyPixels(lazily(examples, size), len(examples))
        self.captions: Any = Chosen(examples.texts or (), examples.places)

    @property
    def counts(self) -> Tensor:
        """Captions of each picture, int64 (n,); the index of tars knows them unread."""
        known = getattr(self.examples.texts, "counts", None)
        return super().counts if known is None else torch.from_numpy(known[self.examples.places])

    def some_captions(self, most: int) -> list[str]:
        """Captions to learn words from: those of `most` pictures, spread evenly."""
        chosen = spread(len(self), most).tolist()
        return [text for number in chosen for text in self.captions[number]]

    def images(self, index: Tensor | None = None) -> Tensor:
        """Pictures (n, 3, size, size), float from 0 to 1; all of them may be too many."""
        index = torch.arange(len(self)) if index is None else index
        return super().images(index)

    def subset(self, index: Tensor, name: str) -> CaptionedSet:
        """Some of the pictures, in the order of `index` (count)."""
        return LazyCaptionedSet(self.examples.subset(index.numpy(), name), self.size, self.skipped)

    def checksum(self) -> str:
        """Eight hexadecimal digits of some of the pictures and captions, and of how many."""
        chosen = torch.linspace(0, len(self) - 1, min(64, len(self))).long()
        some = [self.captions[i] for i in chosen.tolist()]
        digest = hashlib.sha256(json.dumps([len(self), some]).encode())
        digest.update(self.pixels[chosen].contiguous().numpy().tobytes())
        return digest.hexdigest()[:8]


class LazyPixels:
    """Pictures that are decoded when some are asked for, as a tensor of all would be.

    Args:
        read: numbers int64 (n,) -> uint8 (n, 3, size, size).
        count: how many there are.
    """

    def __init__(self, read: Callable[[Tensor], Tensor], count: int) -> None:
        self._read, self._count = read, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        if isinstance(index, slice):
            index = torch.arange(self._count)[index]
        return self._read(index)


class Chosen(Sequence[list[str]]):
    """Some of many captions, read when they are asked for.

    Args:
        texts: captions of each of the many.
        rows: which of them, int64 (n,).
    """

    def __init__(self, texts: Sequence[Sequence[str]], rows: np.ndarray) -> None:
        self._texts, self._rows = texts, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [list(self._texts[int(row)]) for row in self._rows[number]]
        return list(self._texts[int(self._rows[number])])


class LazyWords:
    """Tokens of all captions of a set, in their order, made when they are asked for.

    Args:
        pictures: whose captions.
        tokenize: captions -> int64 (captions, length).
    """

    def __init__(
        self, pictures: CaptionedSet, tokenize: Callable[[Sequence[str]], Tensor]
    ) -> None:
        self._pictures, self._tokenize = pictures, tokenize
        self._ends = pictures.counts.cumsum(0)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: Tensor) -> Tensor:
        """Those of captions int64 (n,): (n, length)."""
        owners = torch.searchsorted(self._ends, index, right=True)
        texts = []
        for number, owner in zip(index.tolist(), owners.tolist(), strict=True):
            captions = self._pictures.captions[owner]
            texts.append(captions[number - int(self._ends[owner])])  # counted from the end
        return self._tokenize(texts)
