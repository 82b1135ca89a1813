"""Captioned pictures: settings, and how sets of them are dealt."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from foveal.data import augment
from foveal.data.captioned_set import CaptionedSet, LazyWords
from foveal.data.emoji import EMOJI
from foveal.data.stream import Draw
from foveal.data.transform import Transform


@dataclass(frozen=True, kw_only=True)
class PictureDataConfig:
    """Which captioned pictures, and how large.

    Attributes:
        path: "emoji" for the embedded ones; a folder with a .txt file of captions (one a line)
            beside each picture, or with a table metadata.jsonl or captions.csv (.tsv, .parquet;
            file_name and text), with or without folders train, valid and test above them; or
            webdataset archives, "shard-{000..009}.tar", of this machine or behind an address,
            such as "s3://bucket/shard-{000..009}.tar".
        valid: other such data to score on while training.
        column: the column of the captions, where a table calls it neither text nor caption.
        size: pictures are scaled and cropped to size x size pixels.
        held_out: share of the pictures kept for scoring where the data have no split.
        max_images: use only so many training pictures; 0 means all.
        flip: mirror half of the pictures left to right while training.
        transform: as in ImageDataConfig; not for DALL-E, which trains on tokens of pictures.
    """

    path: str = EMOJI
    valid: str = ""
    column: str = ""
    size: int = 32
    held_out: float = 0.1
    max_images: int = 0
    flip: bool = False
    transform: str = ""


@dataclass(frozen=True, kw_only=True)
class CaptionDataConfig(PictureDataConfig):
    """Captioned pictures, and how the captions become tokens.

    Attributes:
        text_length: tokens of a caption; longer ones are cut.
        vocabulary: byte pairs that are learned from the captions.
    """

    text_length: int = 24
    vocabulary: int = 1024


@dataclass(frozen=True, kw_only=True)
class DalleDataConfig(CaptionDataConfig):
    """Captioned pictures, and what turns them into tokens.

    Attributes:
        vae: what turns pictures into tokens: a run, a folder written by save_pretrained, or a
            recipe that is trained first.
        clip: what reranks pictures and scores them, likewise; "" for none.
        null_share: share of the pictures that are trained without their caption, which makes
            guidance possible.
        shuffle_captions: train and score with captions of other pictures, to see what captions
            are worth.
    """

    vae: str = "vae-emoji"
    clip: str = "clip-emoji"
    null_share: float = 0.1
    shuffle_captions: bool = False


class Pictures:
    """The pictures of a captioned set alone, (batch, 3, size, size), float from 0 to 1.

    Args:
        pictures: where they come from.
        flip: mirror half of them left to right.
        transform: as in `PictureDataConfig`.
    """

    def __init__(self, pictures: CaptionedSet, flip: bool, transform: str = "") -> None:
        self.pictures, self.flip = pictures, flip
        self._transform = Transform(transform) if transform else None

    def __len__(self) -> int:
        return len(self.pictures)

    def draw(self, draw: Draw) -> Tensor:
        """The pictures of a batch."""
        images = _pictures(self.pictures, draw, self._transform)
        return augment.flip(images, draw.chance) if self.flip else images


class CaptionedPictures:
    """Pictures, or tokens of them, each with one of its captions.

    Args:
        pictures: where they come from.
        captions: tokens (captions of all pictures, text_length), in the order of the pictures;
            perhaps made when they are needed.
        tokens: of the pictures (pictures, grid tokens); the pictures themselves unless given.
        shuffle: give each picture the caption of any picture, another one each time.
        transform: as in `PictureDataConfig`, for pictures themselves.
    """

    def __init__(
        self,
        pictures: CaptionedSet,
        captions: Tensor | LazyWords,
        tokens: Tensor | None = None,
        shuffle: bool = False,
        transform: str = "",
    ) -> None:
        self.pictures, self.captions = pictures, captions
        self.tokens, self.shuffle = tokens, shuffle
        self._transform = Transform(transform) if transform else None
        counts = pictures.counts
        self._counts, self._first = counts, counts.cumsum(0) - counts

    def __len__(self) -> int:
        return len(self.pictures)

    def draw(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """Captions (batch, text_length), and pictures or their tokens."""
        index = told = draw.indices
        if self.shuffle:
            told = draw.chance.below(len(self))
        place = draw.chance.uniform() * self._counts[told]
        captions = self.captions[self._first[told] + place.long()]
        if self.tokens is not None:
            return captions, self.tokens[index]
        return captions, _pictures(self.pictures, draw, self._transform)


def _pictures(pictures: CaptionedSet, draw: Draw, transform: Transform | None) -> Tensor:
    """Those of a draw (batch, 3, size, size), float from 0 to 1."""
    if transform is None:
        return pictures.images(draw.indices)
    return transform(pictures.pixels[draw.indices], draw)
