"""TextImageDataset of dalle-pytorch: pictures and their captions from a folder.

Differs from the package in: pictures are found by any ending that foveal reads, in a fixed order;
a caption with several lines is drawn by torch's random state, and what cannot be read is passed
over without a word on the screen.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from foveal.data.pictures import SUFFIXES, UnreadableImageError, read_picture

__all__ = ["TextImageDataset"]


class TextImageDataset(Dataset):
    """Pairs of a picture and a text file of the same name, wherever they lie in a folder.

    Args:
        folder: with the files.
        text_len: tokens of a caption.
        image_size: side of a picture in pixels.
        truncate_captions: cut captions that are too long, in place of an error.
        resize_ratio: least share of the area that a random square crop keeps.
        transparent: keep a fourth channel.
        tokenizer: tokenizer.tokenize(text, text_len, truncate_text=...) -> (1, text_len).
        shuffle: pass from what cannot be read to any other pair, not the next one.
    """

    def __init__(
        self,
        folder: str | Path,
        text_len: int = 256,
        image_size: int = 128,
        truncate_captions: bool = False,
        resize_ratio: float = 0.75,
        transparent: bool = False,
        tokenizer: Any = None,
        shuffle: bool = False,
    ) -> None:
        super().__init__()
        files = sorted(Path(folder).rglob("*"))
        texts = {one.stem: one for one in files if one.suffix.lower() == ".txt"}
        images = {one.stem: one for one in files if one.suffix.lower() in SUFFIXES}
        self.keys = [key for key in images if key in texts]
        if not self.keys:
            raise ValueError(f"{folder} holds no picture with a .txt file of the same name.")
        self.text_files, self.image_files = texts, images
        self.text_len, self.image_size = text_len, image_size
        self.truncate_captions, self.resize_ratio = truncate_captions, resize_ratio
        self.transparent, self.tokenizer, self.shuffle = transparent, tokenizer, shuffle

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, ind: int) -> tuple[Tensor, Tensor]:
        """Tokens (text_len,) and a picture (channels, image_size, image_size) in [0, 1].

        Raises:
            ValueError: a caption is too long, or nothing in the folder can be read.
        """
        for _ in range(len(self)):
            found = self._read(self.keys[ind])
            if found is not None:
                return found
            ind = _draw(len(self)) if self.shuffle else (ind + 1) % len(self)
        raise ValueError(f"none of {len(self)} pairs was read; the last is {self.keys[ind]}.")

    def _read(self, key: str) -> tuple[Tensor, Tensor] | None:
        captions = self.text_files[key].read_text(encoding="utf-8", errors="replace").split("\n")
        captions = [line for line in captions if line]
        if not captions:
            return None
        try:
            picture = self._pixels(self.image_files[key])
        except (UnreadableImageError, OSError):
            return None
        text = captions[_draw(len(captions))]
        cut = {"truncate_text": self.truncate_captions}
        return self.tokenizer.tokenize(text, self.text_len, **cut).squeeze(0), self._crop(picture)

    def _pixels(self, path: Path) -> Tensor:
        """(channels, height, width) of any size, in [0, 1]."""
        import numpy as np
        from PIL import Image

        picture = Image.open(path).convert("RGBA") if self.transparent else read_picture(path)
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255

    def _crop(self, picture: Tensor) -> Tensor:
        """A random square of at least `resize_ratio` of the area, where it is as long."""
        _, height, width = picture.shape
        share = self.resize_ratio + (1 - self.resize_ratio) * torch.rand(()).item()
        side = max(1, min(round((share * height * width) ** 0.5), height, width))
        top, left = _draw(height - side + 1), _draw(width - side + 1)
        square = picture[None, :, top : top + side, left : left + side]
        size = (self.image_size, self.image_size)
        resized = F.interpolate(square, size, mode="bilinear", antialias=True)
        return resized[0].clamp(0.0, 1.0)


def _draw(count: int) -> int:
    """One of the numbers below `count`, from torch's random state."""
    return int(torch.randint(count, ()))
