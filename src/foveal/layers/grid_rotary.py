"""Rotary positions of text followed by an image: one dimension for text, two for the image."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from foveal.layers.positions import Positions
from foveal.layers.weights import is_traced

IMAGE_AS_TEXT = 8192.0
"""Text position given to every pixel: far away from the text."""

TEXT_AS_IMAGE = -10.0
"""Row and column given to every word: far away from the image, which spans -1 to 1."""


class Rotation(NamedTuple):
    """Cosines and signed sines of the angles by which tokens are turned, (tokens, 1, dim) each.

    Features 2i and 2i + 1 are a pair. Features beyond the angles have cosine 1 and sine 0.
    """

    cos: Tensor
    sin: Tensor

    @classmethod
    def of(cls, angles: Tensor, dim: int) -> Rotation:
        """From angles (1, tokens, features) or (tokens, features), features at most `dim`.

        Raises:
            ValueError: more features than `dim`, or an odd number of them.
        """
        angles = angles.reshape(angles.shape[-2:])
        turned = angles.shape[1]
        if turned > dim or turned % 2:
            raise ValueError(
                f"rotary_pos_emb must have an even number of features, at most dim_head={dim}, "
                f"got {turned}."
            )
        angles = torch.nn.functional.pad(angles, (0, dim - turned))[:, None]
        sign = torch.tensor([-1.0, 1.0], device=angles.device, dtype=angles.dtype).repeat(
            -(-dim // 2)
        )[:dim]
        return cls(angles.cos(), angles.sin() * sign)

    def __call__(self, x: Tensor, offset: int | Tensor = 0, stride: int = 1) -> Tensor:
        """x (batch, tokens, heads, dim) from position `offset` on -> same, turned."""
        return self.at(offset, x.shape[1]).turn(x)

    def at(self, first: int | Tensor, count: int) -> Rotation:
        """The rotation of `count` tokens from position `first` on, an int or a tensor ()."""
        if isinstance(first, Tensor):
            places = first + torch.arange(count, device=first.device)
            return Rotation(self.cos.index_select(0, places), self.sin.index_select(0, places))
        return Rotation(self.cos[first : first + count], self.sin[first : first + count])

    def turn(self, x: Tensor) -> Tensor:
        """x (batch, tokens, heads, dim), turned; in the dtype of x."""
        even = x.shape[-1] // 2 * 2
        swapped = x[..., :even].unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
        if even != x.shape[-1]:  # the last feature has no partner and sine 0
            swapped = torch.cat((swapped, x[..., even:]), -1)
        return torch.addcmul(x * self.cos, swapped, self.sin).to(x.dtype)


class GridRotary(Positions):
    """Positions of text followed by an image, as DALLE-pytorch has them; see text_image_angles.

    Args:
        text_length, grid, dim_head: as in text_image_angles.
    """

    def __init__(self, text_length: int, grid: tuple[int, int], dim_head: int) -> None:
        super().__init__()
        check_rotary(dim_head)
        self.text_length, self.grid, self.dim_head = text_length, grid, dim_head
        self._rotations: dict[torch.device, Rotation] = {}

    def forward(self, x: Tensor, offset: int | Tensor = 0, stride: int = 1) -> Tensor:
        """As in Positions, for a stride of 1: x (batch, tokens, heads, dim_head) -> same."""
        return self.rotation(x.device).at(offset, x.shape[1]).turn(x)

    def rotation(self, device: torch.device) -> Rotation:
        """That of all positions, on a device."""
        if torch.compiler.is_compiling():
            found = self._rotations.get(device)
            return self._turning(device) if found is None else found
        if is_traced():
            return self._turning(device)
        if device not in self._rotations:
            with torch.inference_mode(False):  # training must be able to use the table later
                self._rotations[device] = self._turning(device)
        return self._rotations[device]

    def _turning(self, device: torch.device) -> Rotation:
        angles = text_image_angles(self.text_length, self.grid, self.dim_head, device)
        return Rotation.of(angles, self.dim_head)


def text_image_angles(
    text_length: int, grid: tuple[int, int], dim_head: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Angles of DALLE-pytorch's positions: (text_length + height * width, features) float32.

    A third of the features turns with the position in the text, a third with the row, a third
    with the column of the image.

    Args:
        text_length: words in front of the image, the start token included.
        grid: (height, width) of the image in tokens.
        dim_head: features of a head.
        device: of the angles.

    Raises:
        ValueError: dim_head is below 6, which leaves no pair of features for a third.
    """
    check_rotary(dim_head)
    third = dim_head // 3
    height, width = grid
    # float32 throughout, as the package computes them: the far position amplifies rounding
    here: Any = {"device": device, "dtype": torch.float32}  # whatever this process's defaults are
    words = 1.0 / (10_000 ** (torch.arange(0, third, 2, **here)[: third // 2] / third))
    pixels = torch.linspace(1.0, 5.0, third // 2, **here) * math.pi
    places = torch.cat(
        (
            torch.arange(text_length, **here),
            torch.full((height * width,), IMAGE_AS_TEXT, **here),
        )
    )
    away = torch.full((text_length,), TEXT_AS_IMAGE, **here)
    rows = torch.linspace(-1, 1, height, **here).repeat_interleave(width)
    columns = torch.linspace(-1, 1, width, **here).repeat(height)
    parts = [
        _angles(places, words),
        _angles(torch.cat((away, rows)), pixels),
        _angles(torch.cat((away, columns)), pixels),
    ]
    return torch.cat(parts, -1)


def check_rotary(dim_head: int) -> None:
    """Raise ValueError if a third of a head has no pair of features to turn."""
    if dim_head < 6:
        raise ValueError(
            f"dim_head must be at least 6 for rotary positions, got {dim_head=}; use a larger "
            "one or rotary_emb=False."
        )


def _angles(positions: Tensor, frequencies: Tensor) -> Tensor:
    return (positions[:, None] * frequencies).repeat_interleave(2, -1)
