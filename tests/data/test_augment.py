"""Augmentation: right shapes, repeatable draws, targets that stay distributions."""

import numpy as np
import pytest
import torch

from foveal.data import augment
from foveal.data.chance import ByBatch, ByExample
from foveal.data.images import ImageDataConfig, vary


def by_batch(seed: int, count: int) -> ByBatch:
    return ByBatch(torch.Generator().manual_seed(seed), count)


def by_example(seed: int, count: int) -> ByExample:
    return ByExample(seed, np.arange(count))


BOTH = pytest.mark.parametrize("chance", [by_example, by_batch])


def batch(count: int = 16, size: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(count, 3, size, size), torch.eye(4)[torch.arange(count) % 4]


CHANGES = {
    "flip": lambda x, g: augment.flip(x, g),
    "crop": lambda x, g: augment.random_crop(x, 3, g),
    "resized crop": lambda x, g: augment.random_resized_crop(x, 0.3, g),
    "erasing": lambda x, g: augment.random_erasing(x, 1.0, g),
    "rand_augment": lambda x, g: augment.rand_augment(x, 0.8, g),
}


@BOTH
@pytest.mark.parametrize("name", CHANGES)
def test_changes_are_drawn_for_each_picture_and_repeat(name, chance):
    """The same seed gives the same pictures, another one others, and the shape stays."""
    x, _ = batch()
    first = CHANGES[name](x, chance(0, 16))
    assert first.shape == x.shape
    assert first.isfinite().all()
    assert torch.equal(first, CHANGES[name](x, chance(0, 16)))
    assert not torch.equal(first, CHANGES[name](x, chance(1, 16)))
    same = x[:1].expand(16, -1, -1, -1)
    assert len({row.numpy().tobytes() for row in CHANGES[name](same, chance(0, 16))}) > 1


def test_every_change_of_rand_augment_keeps_the_identity_at_zero():
    """No strength, no change: the picture comes out as it was."""
    x, _ = batch(4)
    for change in augment._CHANGES:
        if change is not augment._solarize:
            torch.testing.assert_close(change(x, torch.zeros(4)), x, atol=1e-5, rtol=1e-5)


@BOTH
def test_flip_mirrors_half_and_crop_shifts(chance):
    """A flipped picture is the mirror image; a crop holds a shifted part of the picture."""
    x, _ = batch(64)
    mirrored = (augment.flip(x, chance(0, 64)) == x.flip(3)).all(-1).all(-1).all(-1)
    assert 16 < int(mirrored.sum()) < 48
    shifted = augment.random_crop(x, 2, chance(0, 64))
    centres = {
        (dy, dx)
        for i in range(64)
        for dy in range(5)
        for dx in range(5)
        if torch.equal(shifted[i, :, 2:-2, 2:-2], x[i, :, dy : dy + 8, dx : dx + 8])
    }
    assert len(centres) > 10


@BOTH
@pytest.mark.parametrize("mix", [augment.mixup, augment.cutmix])
def test_mixed_targets_follow_the_pixels(mix, chance):
    """Targets sum to one, and a picture of one class alone keeps its target."""
    x, targets = batch()
    mixed, soft = mix(x, targets, 0.8, chance(0, 16))
    torch.testing.assert_close(soft.sum(1), torch.ones(16))
    assert not torch.equal(mixed, x)
    marked = targets[:, :1, None, None].expand(-1, 3, 12, 12).contiguous()
    mixed, soft = mix(marked, targets, 0.8, chance(3, 16))
    torch.testing.assert_close(mixed.mean((1, 2, 3)), soft[:, 0])
    assert mix(x, targets, 0.0, chance(0, 16))[0] is x


def test_a_configuration_without_changes_changes_nothing():
    """Everything off is the identity."""
    x, targets = batch()
    config = ImageDataConfig(crop=0, flip=False)
    out, soft = vary(x, targets, config, by_example(0, 16))
    assert torch.equal(out, x)
    assert torch.equal(soft, targets)


@pytest.mark.parametrize("alpha", [0.2, 0.5, 1.0, 3.0])
def test_numbers_of_examples_have_their_distribution(alpha):
    """Uniform ones are flat and apart from each other; shares have Beta's mean and variance."""
    chance = by_example(1, 20_000)
    one, other, share = chance.uniform(), chance.uniform(), chance.share(alpha)
    counts = torch.histc(one, 10, 0, 1)
    assert (counts - 2000).abs().max() < 200
    assert torch.corrcoef(torch.stack([one, other]))[0, 1].abs() < 0.03
    assert torch.corrcoef(torch.stack([one[1:], one[:-1]]))[0, 1].abs() < 0.03
    assert abs(float(share.mean()) - 0.5) < 0.01
    assert abs(float(share.var()) * 4 * (2 * alpha + 1) - 1) < 0.05
    assert chance.below(7).bincount().tolist() == pytest.approx([20_000 / 7] * 7, rel=0.1)
