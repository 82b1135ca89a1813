"""Pictures as models take them: bytes are scaled, other ints are refused."""

from __future__ import annotations

import torch
from torch import Tensor


def as_pixels(name: str, images: Tensor, like: torch.dtype) -> Tensor:
    """Floating-point pictures as they are; bytes from 0 to 255 as numbers from 0 to 1.

    Args:
        name: of the argument, for the message.
        images: (batch, channels, height, width).
        like: the dtype that bytes become, the model's.

    Raises:
        ValueError: ints of another type, whose range nobody can know.
    """
    if images.is_floating_point():
        return images
    if images.dtype == torch.uint8:
        return images.to(like) / 255
    raise ValueError(
        f"{name} must be floating-point numbers from 0 to 1 or bytes (uint8), got {images.dtype}; "
        "divide them by their largest value."
    )
