"""Shorten: few coarse queries over many fine keys."""

import pytest
import torch

import foveal
from foveal import patterns as P
from foveal import testing


@pytest.mark.parametrize("factor", [1, 2, 3, 7])
def test_every_view_agrees_with_the_definition(factor):
    """Plan, count and intervals at lengths below, at and beside multiples of the factor."""
    for length in (1, 2, 7, 64, 97, 200):
        testing.assert_pattern(P.Shorten(factor), length)


@pytest.mark.parametrize("impl", ["reference", "dense", "tiled"])
def test_attention_from_coarse_to_fine(impl):
    """Outputs and gradients equal the oracle, with a key mask too."""
    torch.manual_seed(0)
    pattern, length = P.Shorten(3), 200
    shapes = [(2, 2, 67, 8), (2, 2, length, 8), (2, 2, length, 8)]
    q, k, v = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes)
    key_mask = torch.rand(2, length) < 0.7
    got = foveal.attend(q, k, v, pattern, key_mask=key_mask, impl=impl)
    mask = pattern.mask(67, length) & key_mask[:, None, None]
    scores = (q @ k.mT * 8**-0.5).masked_fill(~mask, -1e30)
    expected = scores.softmax(-1) @ v * mask.any(-1, keepdim=True)
    torch.testing.assert_close(got, expected)
    weight = torch.randn_like(got)
    for a, b in zip(
        *(torch.autograd.grad(x, (q, k, v), weight) for x in (got, expected)), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_nonsense_factor():
    """The factor is refused by name and value."""
    with pytest.raises(ValueError, match="factor=0"):
        P.Shorten(0)
