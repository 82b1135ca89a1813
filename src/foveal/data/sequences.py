"""Token sequences with classes: ListOps, bytes of text files, pixels of pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveal.data.stream import Draw


@dataclass(frozen=True, kw_only=True)
class SequenceDataConfig:
    """Which sequences, how long, and how many.

    Attributes:
        path: "listops" for generated expressions; a folder of class folders of text files, with
            or without folders train, valid and test above them, read as bytes; a table (.csv,
            .tsv, .jsonl, .json, .parquet), or a folder of train.csv and test.csv; a .npz archive
            of pictures, read as a row of grey pixels; or "hf:NAME" for a text data set of the
            Hugging Face `datasets` package.
        valid: other such data of the same classes to score on while training.
        column, label: the columns of a table that hold the text and its class; "text" and
            "label" unless told otherwise.
        length: tokens of a sequence at most; longer ones are cut.
        size: pictures are scaled to size x size pixels.
        train_examples, test_examples: of ListOps; Long Range Arena has 96,000 and 2,000.
        held_out: share kept for scoring where the data have no split.
        max_examples: use only so many training sequences; 0 means all.
    """

    path: str = "listops"
    valid: str = ""
    column: str = ""
    label: str = ""
    length: int = 2000
    size: int = 32
    train_examples: int = 96_000
    test_examples: int = 2000
    held_out: float = 0.1
    max_examples: int = 0


class SequenceSet:
    """Labelled token sequences in memory.

    Args:
        name: what to call them in reports.
        sequences: uint8 arrays, one a sequence.
        labels: the class of each.
        classes: the name of each label.
        num_tokens: size of the vocabulary.
        skipped: what was wrong with those that were left out.
    """

    def __init__(
        self,
        name: str,
        sequences: Sequence[np.ndarray],
        labels: Any,
        classes: Sequence[str],
        num_tokens: int = 256,
        skipped: Sequence[str] = (),
    ) -> None:
        self.name, self.sequences, self.classes = name, list(sequences), list(classes)
        self.labels = torch.as_tensor(labels).long()
        self.num_tokens, self.skipped = num_tokens, list(skipped)

    def __len__(self) -> int:
        return len(self.sequences)

    def read(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (number, longest) int64, zeros behind short ones, and the mask of real ones."""
        rows = [self.sequences[i] for i in index.tolist()]
        lengths = torch.tensor([len(row) for row in rows])
        tokens = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
        for place, row in zip(tokens, rows, strict=True):
            place[: len(row)] = torch.from_numpy(row.astype(np.int64))
        return tokens, torch.arange(tokens.shape[1]) < lengths[:, None]

    def draw(self, draw: Draw) -> tuple[Tensor, Tensor, Tensor]:
        """A batch to train on: tokens and mask (batch, longest), labels (batch,)."""
        return *self.read(draw.indices), self.labels[draw.indices]

    def subset(self, index: Tensor, name: str) -> SequenceSet:
        """Some of the sequences, in the order of `index` (count)."""
        chosen = [self.sequences[i] for i in index.tolist()]
        return SequenceSet(
            name, chosen, self.labels[index], self.classes, self.num_tokens, self.skipped
        )

    def checksum(self) -> str:
        """Eight hexadecimal digits that other sequences or labels would change."""
        digest = hashlib.sha256(self.labels.numpy().tobytes())
        for sequence in self.sequences[:: max(1, len(self) // 64)]:
            digest.update(sequence.tobytes())
        return digest.hexdigest()[:8]
