"""Token shift: which neighbour each feature comes from, whole and token by token."""

from __future__ import annotations

import pytest
import torch

from foveal.layers.token_shift import TokenShift


def test_where_features_come_from():
    """Half a word from the word before; quarters of a pixel from above and from the left."""
    shift = TokenShift(8, text_length=3, width=2)
    x = torch.arange(1.0, 8)[None, :, None].expand(1, 7, 8)  # token i is full of i + 1
    out = shift(x)[0]
    assert out[:3, 0].tolist() == [0, 1, 2]
    assert out[:3, 4].tolist() == [1, 2, 3]
    assert out[3:, 0].tolist() == [0, 0, 4, 5]  # above
    assert out[3:, 2].tolist() == [0, 4, 0, 6]  # left
    assert out[3:, 4].tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize("dim", [8, 6, 5])
@pytest.mark.parametrize("width", [1, 2, 3])
def test_step_equals_whole(dim, width):
    """Token by token, from any prompt, the shift is that of the whole sequence."""
    shift = TokenShift(dim, text_length=4, width=width)
    x = torch.randn(2, 13, dim)
    wanted = shift(x)
    for prompt in (1, 3, 4, 5, 9):
        cache = shift.make_cache(2, torch.float32, "cpu")
        parts = [shift.prefill(x[:, :prompt], cache)]
        parts += [shift.step(x[:, i : i + 1].clone(), cache) for i in range(prompt, 13)]
        assert torch.equal(torch.cat(parts, 1), wanted)


def test_a_short_text_is_shifted_as_a_long_one():
    """A prefix gives the prefix of the features."""
    shift = TokenShift(8, text_length=6, width=2)
    x = torch.randn(1, 9, 8)
    assert torch.equal(shift(x[:, :4]), shift(x)[:, :4])
