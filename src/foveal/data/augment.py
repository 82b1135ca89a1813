"""Augmentation of whole batches on tensors; every picture gets its own draw.

All functions take images (batch, channels, height, width), float, with 0 as the mean colour, and
draw from the `Chance` they are given: a resumed run sees the same pictures, and so does any number
of processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, pad

from foveal.data.chance import Chance

MEAN, SPREAD = 0.5, 0.25


def to_floats(images: Tensor) -> Tensor:
    """Pictures of any shape -> floats around 0 of about unit spread, alike for all data.

    images: any shape, uint8 or floats from 0 to 1.
    """
    if not images.is_floating_point():
        images = images.float() / 255
    return (images - MEAN) / SPREAD


def random_crop(images: Tensor, margin: int, chance: Chance) -> Tensor:
    """Shift each of images (batch, channels, height, width) by up to `margin` pixels.

    What comes in is the mean colour.
    """
    if not margin:
        return images
    batch, _, height, width = images.shape
    padded = pad(images, [margin] * 4).permute(0, 2, 3, 1)
    top, left = (chance.below(2 * margin + 1)[:, None, None] for _ in range(2))
    rows = top + torch.arange(height)[None, :, None]
    columns = left + torch.arange(width)[None, None, :]
    picked = padded[torch.arange(batch)[:, None, None], rows, columns]
    return picked.permute(0, 3, 1, 2)


def flip(images: Tensor, chance: Chance) -> Tensor:
    """Mirror half of images (batch, channels, height, width) left to right."""
    mirrored = chance.uniform()[:, None, None, None] < 0.5
    return torch.where(mirrored, images.flip(3), images)


def random_resized_crop(images: Tensor, least_area: float, chance: Chance) -> Tensor:
    """Cut a window out of each of images (batch, channels, height, width), and scale it up.

    It has at least `least_area` of the image, and is up to 3:4 out of square.
    """
    if least_area >= 1:
        return images
    area = least_area + (1 - least_area) * chance.uniform()
    ratio = ((chance.uniform() * 2 - 1) * math.log(4 / 3)).exp()
    high, wide = ((area / ratio).sqrt().clamp(max=1), (area * ratio).sqrt().clamp(max=1))
    down, across = ((chance.uniform() * 2 - 1) * (1 - side) for side in (high, wide))
    return _transform(images, _matrix(wide, high, across, down))


def random_erasing(images: Tensor, probability: float, chance: Chance) -> Tensor:
    """Put noise over 2 % to 33 % of some of images (batch, channels, height, width)."""
    if not probability:
        return images
    height, width = images.shape[2:]
    area = 0.02 + 0.31 * chance.uniform()
    ratio = ((chance.uniform() * 2 - 1) * math.log(3)).exp()
    inside = _boxes((area * ratio).sqrt(), (area / ratio).sqrt(), height, width, chance)
    erased = chance.uniform() < probability
    inside &= erased[:, None, None]
    noise = chance.normal(tuple(images.shape[1:]), erased)
    return torch.where(inside[:, None], noise, images)


def mixup(images: Tensor, targets: Tensor, alpha: float, chance: Chance) -> tuple[Tensor, Tensor]:
    """Blend each image and its target (batch, classes) with another one's. Zhang et al. 2018."""
    if not alpha:
        return images, targets
    share, other = chance.share(alpha), chance.others()
    one, rest = share.float()[:, None], (1 - share).float()[:, None]
    return (
        images * one[..., None, None] + images[other] * rest[..., None, None],
        targets * one + targets[other] * rest,
    )


def cutmix(images: Tensor, targets: Tensor, alpha: float, chance: Chance) -> tuple[Tensor, Tensor]:
    """Paste a rectangle of another image; the target follows the areas. Yun et al. 2019.

    images: (batch, channels, height, width); targets: (batch, classes).
    """
    if not alpha:
        return images, targets
    other = chance.others()
    side = (1 - chance.share(alpha)).sqrt().float()
    inside = _boxes(side, side, images.shape[2], images.shape[3], chance)
    pasted = inside.float().mean((1, 2))[:, None]
    mixed = torch.where(inside[:, None], images[other], images)
    return mixed, targets * (1 - pasted) + targets[other] * pasted


def rand_augment(images: Tensor, strength: float, chance: Chance) -> Tensor:
    """Two changes out of seven for each image, each by its own amount. After Cubuk 2020.

    Args:
        images: (batch, channels, height, width).
        strength: 0 for none, 1 for rotations up to 30 degrees and the like.
    """
    if not strength:
        return images
    for choices in chance.choice(len(_CHANGES), 2):
        amount = (chance.uniform() * 2 - 1) * strength
        images = _change(images, choices, amount)
    return images


def _change(images: Tensor, choices: Tensor, amount: Tensor) -> Tensor:
    """Each image by the change that was chosen for it."""
    chosen = choices.unique().tolist()
    if len(chosen) == 1:
        return _CHANGES[chosen[0]](images, amount)
    changed = torch.empty_like(images)
    for choice in chosen:
        those = (choices == choice).nonzero()[:, 0]
        changed[those] = _CHANGES[choice](images[those], amount[those])
    return changed


# -- the changes of rand_augment; amount (batch,) is from -1 to 1 ---------------------------------


def _rotate(images: Tensor, amount: Tensor) -> Tensor:
    angle = amount * math.radians(30)
    matrix = torch.zeros(len(images), 2, 3)
    matrix[:, 0, 0], matrix[:, 0, 1] = angle.cos(), -angle.sin()
    matrix[:, 1, 0], matrix[:, 1, 1] = angle.sin(), angle.cos()
    return _transform(images, matrix)


def _shear(images: Tensor, amount: Tensor) -> Tensor:
    matrix = _matrix(*(torch.ones(len(images)),) * 2, *(torch.zeros(len(images)),) * 2)
    matrix[:, 0, 1] = 0.3 * amount
    return _transform(images, matrix)


def _zoom(images: Tensor, amount: Tensor) -> Tensor:
    factor = 1 + 0.25 * amount
    zero = torch.zeros_like(amount)
    return _transform(images, _matrix(factor, factor, zero, zero))


def _brightness(images: Tensor, amount: Tensor) -> Tensor:
    return images + amount[:, None, None, None]


def _contrast(images: Tensor, amount: Tensor) -> Tensor:
    return images * (1 + 0.5 * amount[:, None, None, None])


def _saturation(images: Tensor, amount: Tensor) -> Tensor:
    grey = images.mean(1, keepdim=True)
    return grey + (images - grey) * (1 + 0.8 * amount[:, None, None, None])


def _solarize(images: Tensor, amount: Tensor) -> Tensor:
    limit = MEAN / SPREAD * (1 - amount.clamp(min=0) * 0.7)[:, None, None, None]
    return torch.where(images > limit, -images, images)


_CHANGES: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    *(_rotate, _shear, _zoom, _brightness, _contrast, _saturation, _solarize),
)


def _matrix(wide: Tensor, high: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """Affine maps (batch, 2, 3) from places in the result to places in the image."""
    matrix = torch.zeros(len(wide), 2, 3)
    matrix[:, 0, 0], matrix[:, 0, 2] = wide, across
    matrix[:, 1, 1], matrix[:, 1, 2] = high, down
    return matrix


def _transform(images: Tensor, matrix: Tensor) -> Tensor:
    grid = affine_grid(matrix, list(images.shape), align_corners=False)
    return grid_sample(images, grid, align_corners=False)


def _boxes(high: Tensor, wide: Tensor, height: int, width: int, chance: Chance) -> Tensor:
    """Random rectangles (batch, height, width) bool; `high` and `wide` are shares of the image."""
    inside = []
    for share, side in ((high, height), (wide, width)):
        length = (share * side).round().clamp(max=side)
        first = (chance.uniform() * (side - length + 1)).floor()
        place = torch.arange(side)[None]
        inside.append((place >= first[:, None]) & (place < (first + length)[:, None]))
    return inside[0][:, :, None] & inside[1][:, None, :]
