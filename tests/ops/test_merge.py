"""merge(): softmax over a union of disjoint key sets."""

import pytest
import torch

import foveal
from foveal import patterns as P
from foveal.ops.reference import masked_attention
from foveal.testing import assert_close


def parts_of(q, k, v, masks):
    return [masked_attention(q, k, v, mask) for mask in masks]


def test_parts_make_the_whole_with_gradients():
    """Three disjoint parts merge to the attention over all keys, also where one part is empty."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 20, 8, dtype=torch.float64, requires_grad=True) for _ in "qkv")
    owner = torch.randint(0, 3, (20, 20))
    owner[4] = 2
    owner[7] = 5  # reads nothing at all
    masks = [owner == part for part in range(3)]
    weight = torch.randn(2, 3, 20, 8, dtype=torch.float64)
    results = []
    whole = masked_attention(q, k, v, owner < 3)
    for out, lse in (foveal.merge(parts_of(q, k, v, masks)), whole):
        loss = (out * weight).sum() + torch.where(torch.isfinite(lse), lse, 0.0).sum()
        results.append([out, torch.autograd.grad(loss, (q, k, v), retain_graph=True), lse])
    (out, grads, lse), (want, want_grads, want_lse) = results
    assert_close(out, want, rtol=1e-12)
    assert torch.equal(torch.isinf(lse), torch.isinf(want_lse))
    for got, expected in zip(grads, want_grads, strict=True):
        assert torch.isfinite(got).all()
        assert_close(got, expected, rtol=1e-10)


def test_tiled_parts_merge():
    """Log-sum-exps of the tiled engine carry gradients through the merge."""
    q, k, v = (torch.randn(1, 2, 150, 8, dtype=torch.float64, requires_grad=True) for _ in "qkv")
    near, both = P.SlidingWindow(16), P.SlidingWindow(64)
    far = P.SlidingWindow(64) & P.Strided(8)
    only_far = both.mask(150) & ~near.mask(150)
    parts = [
        foveal.attend(q, k, v, near, impl="tiled", return_lse=True),
        masked_attention(q, k, v, only_far),
    ]
    out, _ = foveal.merge(parts)
    want = foveal.attend(q, k, v, both, impl="reference")
    assert_close(out, want, rtol=1e-12)
    got = torch.autograd.grad(out.square().sum(), (q, k, v))
    expected = torch.autograd.grad(want.square().sum(), (q, k, v))
    for a, b in zip(got, expected, strict=True):
        assert_close(a, b, rtol=1e-10)
    assert far.is_causal


def test_large_differences_stay_finite():
    """Logits hundreds apart neither overflow nor vanish into NaN."""
    out = [torch.full((1, 1, 1, 2), float(i)) for i in range(3)]
    lse = [torch.tensor([[[x]]]) for x in (900.0, -900.0, 0.0)]
    merged, total = foveal.merge(list(zip(out, lse, strict=True)))
    assert torch.equal(merged, out[0])
    assert torch.equal(total, lse[0])


def test_nonsense():
    """No parts, or parts of different shapes, are named."""
    with pytest.raises(ValueError, match="none"):
        foveal.merge([])
    with pytest.raises(ValueError, match="equal shapes"):
        foveal.merge([(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 4))])
