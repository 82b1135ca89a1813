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


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_what_a_part_without_keys_holds_does_not_leak(poison, count):
    """A log-sum-exp of -inf says that a part weighs nothing: its output may be anything."""
    torch.manual_seed(0)
    outs = [torch.randn(1, 1, 4, 3, dtype=torch.float64) for _ in range(count)]
    lses = [torch.randn(1, 1, 4, dtype=torch.float64) for _ in range(count)]
    outs[0][0, 0, 1] = poison
    lses[0][0, 0, 1] = -torch.inf
    for one, lse in zip(outs, lses, strict=True):  # a row that no part has a key for
        one[0, 0, 2], lse[0, 0, 2] = poison, -torch.inf
    given = [x.requires_grad_() for x in (*outs, *lses)]
    out, lse = foveal.merge(list(zip(outs, lses, strict=True)))
    assert torch.isfinite(out).all()
    assert not out[0, 0, 2].any()
    assert lse[0, 0, 2] == -torch.inf
    total = out.sum() + torch.where(torch.isfinite(lse), lse, 0.0).sum()
    assert all(torch.isfinite(grad).all() for grad in torch.autograd.grad(total, given))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_summed_in_float32(dtype):
    """Many parts in half precision lose no more than the rounding of the result."""
    torch.manual_seed(0)
    outs = [torch.randn(1, 1, 4, 3).to(dtype) for _ in range(64)]
    lses = [torch.randn(1, 1, 4) for _ in outs]
    out, _ = foveal.merge(list(zip(outs, lses, strict=True)))
    want, _ = foveal.merge(
        [(one.double(), lse.double()) for one, lse in zip(outs, lses, strict=True)]
    )
    assert out.dtype == dtype
    assert (out.double() - want).abs().max() <= torch.finfo(dtype).eps * want.abs().max()


def test_nonsense():
    """No parts, or parts of different shapes, are named."""
    with pytest.raises(ValueError, match="none"):
        foveal.merge([])
    with pytest.raises(ValueError, match="equal shapes"):
        foveal.merge([(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 4))])
