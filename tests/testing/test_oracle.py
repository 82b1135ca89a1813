"""dense_attention: the oracle itself, held to PyTorch and to a loop."""

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from foveal.patterns.window import SlidingWindow
from foveal.testing import assert_close, dense_attention


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def test_equals_pytorch():
    """With mask, bias, grouped heads and a scale of one's own."""
    q, k, v = draw(2, 6, 7, 4), draw(2, 2, 9, 4, seed=1), draw(2, 2, 9, 3, seed=2)
    mask, bias = draw(7, 9, seed=3) > -1, draw(6, 7, 9, seed=4)
    mask[:, 0] = True
    out, lse = dense_attention(q, k, v, mask, bias, scale=0.3)
    expected = scaled_dot_product_attention(
        q, k, v, bias.masked_fill(~mask, -math.inf), scale=0.3, enable_gqa=True
    )
    assert_close(out, expected, 1e-12)
    scores = q @ k.repeat_interleave(3, 1).mT * 0.3 + bias
    assert_close(lse, scores.masked_fill(~mask, -math.inf).logsumexp(-1), 1e-12)


def test_rows_without_keys_are_zero_with_zero_gradients():
    """A fully masked row gives 0 and -inf, and passes no NaN backwards."""
    q, k, v = (draw(1, 1, 4, 2, seed=i).requires_grad_() for i in range(3))
    mask = torch.ones(4, 4, dtype=torch.bool)
    mask[2] = False
    out, lse = dense_attention(q, k, v, mask)
    assert bool((out[0, 0, 2] == 0).all())
    assert lse[0, 0, 2] == -math.inf
    out.sum().backward()
    assert all(bool(x.grad.isfinite().all()) for x in (q, k, v))
    assert bool((q.grad[0, 0, 2] == 0).all())


def test_key_mask_removes_keys():
    """Masked keys are as good as absent."""
    q, k, v = (draw(2, 1, 5, 2, seed=i) for i in range(3))
    key_mask = torch.tensor([[True] * 5, [True, False, True, True, False]])
    out, _ = dense_attention(q, k, v, key_mask=key_mask)
    expected, _ = dense_attention(q[1:], k[1:, :, [0, 2, 3]], v[1:, :, [0, 2, 3]])
    assert_close(out[1:], expected, 1e-12)


def test_takes_a_pattern_and_any_dtype():
    """A pattern stands for its mask, and half precision is lifted to float64."""
    q = draw(1, 1, 6, 2).bfloat16()
    out, lse = dense_attention(q, q, q, SlidingWindow(3))
    expected, _ = dense_attention(q, q, q, SlidingWindow(3).mask(6))
    assert out.dtype == lse.dtype == torch.float64
    assert torch.equal(out, expected)


def test_no_tokens():
    """Empty queries or keys give empty or zero outputs."""
    q, empty = draw(1, 1, 3, 2), draw(1, 1, 0, 2)
    assert bool((dense_attention(q, empty, empty)[0] == 0).all())
    assert dense_attention(empty, q, q)[0].shape == (1, 1, 0, 2)


def test_heads_must_divide():
    """Grouped heads that do not divide are refused."""
    with pytest.raises(ValueError, match="multiple"):
        dense_attention(draw(1, 3, 2, 2), draw(1, 2, 2, 2), draw(1, 2, 2, 2))
