"""Streams of Hugging Face `datasets`: hf-stream:NAME, read as it comes and never kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveal.data import augment
from foveal.data.corpus import Corpus, Span
from foveal.data.endless import Readers, how_many
from foveal.data.hub_texts import text_column, texts_in
from foveal.data.image_hub import columns_of, file_of, find_hub, hub_parts, load_hub
from foveal.data.images import ImageDataConfig, ImageSet, collect, decode, vary
from foveal.data.stream import Draw
from foveal.data.walk import LeftOut

_SCORED_BYTES = 1_000_000


def _open(path: str) -> dict[str, Any]:
    """The splits of a stream by part.

    Raises:
        ValueError: it has nothing to score on, and there is no package, or no such data.
    """
    return hub_parts(load_hub(path, streaming=True))


def _scored(splits: dict[str, Any], path: str) -> Any:
    found = splits.get("valid", splits.get("test"))
    if found is None:
        raise ValueError(
            f"data.path={path!r} has no validation or test part to score on; name other data for "
            "that with --data.valid."
        )
    return found


def _reader(split: Any, number: int, count: int) -> Any:
    """The rows of one logical reader: neighbouring files of a stream."""
    return split.shard(num_shards=count, index=number)


# -- texts ----------------------------------------------------------------------------------------


class StreamedTexts:
    """Texts to train on that come by a stream.

    Args:
        path: hf-stream:NAME.
        split: its rows.
        column: of the texts.
    """

    def __init__(self, path: str, split: Any, column: str) -> None:
        self.name, self.split, self.column = f"{path}, training part", split, column

    def windows(self, context: int) -> StreamedWindows:
        """Windows of so many bytes."""
        return StreamedWindows(self, context)


class StreamedWindows:
    """Windows of a stream of texts, each reader's one after the other; see `EndlessSource`.

    Args:
        texts: what is read.
        context: bytes per window; the window's successor byte is the last target.
    """

    def __init__(self, texts: StreamedTexts, context: int) -> None:
        count = how_many(texts.split.num_shards)
        self.texts, self.context = texts, context
        self.readers = Readers(lambda n: self._windows(n, count), count, texts.name)

    def batch(self, items: list[np.ndarray], draw: Draw) -> tuple[Tensor, Tensor]:
        """(inputs, targets), each int64 of shape (batch, context)."""
        tokens = torch.from_numpy(np.stack(items).astype(np.int64))
        return tokens[:, :-1], tokens[:, 1:]

    def _windows(self, number: int, count: int) -> Iterator[np.ndarray]:
        held, size = bytearray(), self.context + 1
        for text in texts_in(_reader(self.texts.split, number, count), self.texts.column):
            held += text
            place = 0
            while len(held) - place >= size:
                yield np.frombuffer(bytes(held[place : place + size]), np.uint8)
                place += self.context
            del held[:place]


def open_streamed_texts(path: str, column: str) -> tuple[StreamedTexts, dict[str, list[Span]]]:
    """Texts to train on, and the beginning of those to score on, by part.

    Raises:
        ValueError: no package, no such data, or no such column.
    """
    splits = _open(path)
    column = text_column(splits["train"], column, path)
    held: dict[str, list[Span]] = {}
    for part in ("valid", "test"):
        if part in splits:
            raw = bytearray()
            for text in texts_in(splits[part], column):
                raw += text
                if len(raw) >= _SCORED_BYTES:
                    break
            whole = bytes(raw[:_SCORED_BYTES])
            held[part] = [Span(HeldTexts(f"{path}, {part} part"), 0, len(whole), whole)]
    return StreamedTexts(path, splits["train"], column), held


@dataclass(frozen=True)
class HeldTexts:
    """The name of texts that are held in memory; see `corpus.Texts`."""

    name: str

    def __str__(self) -> str:
        return self.name

    def read_into(self, out: np.ndarray, start: int) -> None:
        """Never asked for: what is held is read from there."""
        raise NotImplementedError

    def begins(self, places: np.ndarray) -> np.ndarray:
        """One text, (n,) zeros."""
        return np.zeros_like(places)


def streamed_pair(path: str, valid: Corpus | None, column: str) -> tuple[StreamedTexts, Corpus]:
    """What is trained on, and what is scored meanwhile.

    Raises:
        ValueError: as `open_streamed_texts`, or there is nothing to score on.
    """
    texts, held = open_streamed_texts(path, column)
    if valid is None:
        spans = _scored(held, path)
        valid = Corpus(str(spans[0].path), spans)
    return texts, valid


# -- pictures -------------------------------------------------------------------------------------


class StreamedImages:
    """Labelled pictures that come by a stream, varied as those of `AugmentedImages`.

    Args:
        path: hf-stream:NAME.
        split: its rows.
        config: how they are varied.
    """

    def __init__(self, path: str, split: Any, config: ImageDataConfig) -> None:
        import datasets

        self.name, self.config = f"{path}, training part", config
        self._image, self._label = columns_of(split, path)
        feature = split.features[self._label]
        if not isinstance(feature, datasets.ClassLabel):
            raise ValueError(
                f"the column {self._label!r} of {path!r} must be a ClassLabel, which says how "
                "many classes there are, got other labels; use hf:NAME instead."
            )
        for name in ("mixup", "cutmix", "balance"):
            if getattr(config, name):
                raise ValueError(
                    f"data.{name} must be 0 for {path!r}, got {getattr(config, name)}: it needs "
                    "other pictures than those that come; use hf:NAME instead."
                )
        self.classes = list(feature.names)
        rows = split.cast_column(self._image, datasets.Image(decode=False))
        count = how_many(split.num_shards)
        self.readers = Readers(lambda n: self._labelled(_reader(rows, n, count)), count, self.name)

    def batch(self, items: list[tuple[Any, int]], draw: Draw) -> tuple[Tensor, Tensor]:
        """Images (batch, 3, size, size) float, and targets (batch, classes) that sum to 1.

        Raises:
            ValueError: a picture cannot be decoded.
        """
        size = self.config.size
        jobs = (
            (file, size, f"picture {int(place)} of {self.name}")
            for (file, _), place in zip(items, draw.places, strict=True)
        )
        pixels, bad = collect(jobs, len(items), size)
        if bad:
            raise ValueError(f"{bad[0][1]} A stream cannot pass over it; use hf:NAME instead.")
        images = augment.to_floats(torch.from_numpy(pixels).permute(0, 3, 1, 2))
        labels = torch.tensor([label for _, label in items])
        targets = torch.nn.functional.one_hot(labels, len(self.classes)).float()
        return vary(images, targets, self.config, draw.chance)

    def _labelled(self, rows: Any) -> Iterator[tuple[str | bytes, int]]:
        for row in rows:
            label = row[self._label]
            if label is not None and label >= 0:
                yield file_of(row[self._image]), label


def open_streamed_images(config: ImageDataConfig) -> tuple[StreamedImages, ImageSet | None]:
    """What is trained on, and the beginning of the part that is scored, if no other data are.

    Raises:
        ValueError: no package, no such data, nothing to score on, or settings that need more.
    """
    train = StreamedImages(config.path, _open(config.path)["train"], config)
    if config.valid:
        return train, None
    left = LeftOut()
    parts = find_hub(config.path, config.size, left)
    examples = parts.valid or parts.test
    held_out = None if examples is None else decode(examples, config.size, left)
    scored: ImageSet = _scored({"valid": held_out} if held_out else {}, config.path)
    left.warn(config.path, "picture")
    return train, scored
