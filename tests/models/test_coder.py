"""Any object with encode and decode as the VAE of a DALLE."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import foveal
from foveal.models.vae import CoderVAE

DALLE = {"dim": 16, "depth": 1, "heads": 2, "dim_head": 8, "num_text_tokens": 9, "text_seq_len": 3}


class Levels(nn.Module):
    """A code is the brightness of a patch of 2 x 2 pixels, in 16 levels; from `low` to `high`."""

    def __init__(self, low=0.0, high=1.0, dtype=torch.int32):
        super().__init__()
        self.low, self.high, self.dtype = low, high, dtype
        self.weight = nn.Parameter(torch.ones(1))

    def encode(self, pictures):
        assert not self.training
        mean = nn.functional.avg_pool2d(pictures, 2).mean(1)
        return ((mean - self.low) / (self.high - self.low) * 15).round().to(self.dtype)

    def decode(self, codes):
        bright = codes[:, None] / 15 * (self.high - self.low) + self.low
        return bright.repeat_interleave(2, 2).repeat_interleave(2, 3).expand(-1, 3, -1, -1)


@pytest.mark.parametrize("value_range", [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint8])
def test_pictures_come_back(value_range, dtype):
    """In the coder's own range and grid, of any rectangular size; its mode is left alone."""
    coder = Levels(*value_range, dtype=dtype).train()
    vae = CoderVAE(coder, (6, 8), 16, value_range=value_range)
    assert vae.grid == (3, 4)
    codes = torch.randint(16, (5, 12))
    assert torch.equal(vae.get_codebook_indices(vae.decode(codes)), codes)
    assert torch.equal(vae.get_codebook_indices((vae.decode(codes) * 255).byte()), codes)
    assert coder.training


def test_a_dalle_trains_on_it_and_draws(tmp_path):
    """It stays outside of the model; one that is read again is given it anew."""
    vae = CoderVAE(Levels(), 6, 16)
    model = foveal.DALLE(vae=vae, **DALLE)
    assert not any(
        name.split(".")[-1] == "weight" and "vae" in name for name in model.state_dict()
    )
    text, images = torch.randint(1, 9, (2, 3)), torch.rand(2, 3, 6, 6)
    model(text, images, return_loss=True).backward()
    assert vae.coder.weight.grad is None
    drawn = model.generate_images(text, seed=0)
    assert drawn.shape == (2, 3, 6, 6)
    model.save_pretrained(tmp_path)
    again = foveal.load_model(tmp_path)
    with pytest.raises(ValueError, match="pictures need a VAE"):
        again.generate_images(text)
    again.vae = vae
    assert torch.equal(again.generate_images(text, seed=0), drawn)


ONES = torch.ones(1, 3, 6, 6)


def test_a_coder_in_half_precision_is_given_that():
    """Pictures come in the dtype of its weights, and go back as float32."""
    vae = CoderVAE(Levels().bfloat16(), 6, 16)
    assert vae.decode(vae.get_codebook_indices(torch.rand(1, 3, 6, 6))).dtype == torch.float32


class Wrong(Levels):
    """Levels, but for what a test puts in."""

    def __init__(self, **methods):
        super().__init__()
        for name, method in methods.items():
            setattr(self, name, method)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CoderVAE(object(), 6, 16), "must have a method encode, got object"),
        (lambda: CoderVAE(Levels(), 6, 16, channels=1), "must decode pictures of the shape"),
        (lambda: CoderVAE(Wrong(encode=lambda x: x), 6, 16), "must encode as int .1, grid"),
        (lambda: CoderVAE(Wrong(encode=lambda x: [1]), 6, 16), "got list"),
        (
            lambda: CoderVAE(Wrong(encode=lambda x: x.flatten(1).long()), 6, 16),
            r"\(1, 108\)",
        ),
        (lambda: CoderVAE(Levels(), 6, 16).decode(torch.zeros(1, 8).long()), "grid of 3 x 3"),
        (lambda: CoderVAE(Levels(), 6, 16).decode(torch.zeros(1, 9)), "got torch.float32"),
        (
            lambda: CoderVAE(Levels(), 6, 9).get_codebook_indices(ONES),
            "15 to 15",
        ),
        (
            lambda: CoderVAE(Levels(), (6, 8), 16).get_codebook_indices(ONES),
            "3, 6, 6",
        ),
        (lambda: CoderVAE(Levels(), 0, 16), "image_size"),
        (lambda: CoderVAE(Levels(), 6, 16, value_range=(1.0, 1.0)), "value_range must go up"),
        (
            lambda: CoderVAE(Levels(), 6, 16, value_range=(1.0, -1.0)),
            "value_range=.1.0, -1.0",
        ),
    ],
)
def test_what_is_no_coder_is_named(make, message):
    """One line each, when it is made or when it is first used."""
    with pytest.raises(ValueError, match=message):
        make()
