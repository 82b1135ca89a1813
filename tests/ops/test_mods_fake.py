"""flex_attention of fake tensors: shapes, and gradients that reach all that takes one."""

from __future__ import annotations

import contextlib
import itertools

import pytest
import torch
from torch._subclasses import FakeTensorMode

import foveal
from foveal.patterns import SlidingWindow


@pytest.mark.parametrize("inside", [True, False])
def test_fake_tensors_give_shapes(inside):
    """In their mode or outside of it, with masks and scores, gradients and what is captured."""
    slopes, table = torch.rand(2, requires_grad=True), torch.rand(2, 80, requires_grad=True)
    mask = SlidingWindow(9).block_mask(40)
    mods = (
        None,
        lambda score, b, h, q, k: score * 2,
        lambda score, b, h, q, k: score - slopes[h] * (q - k).abs(),
        lambda score, b, h, q, k: torch.tanh(score) + table[h, q - k + 40],
    )
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    for mod, made in itertools.product(mods, (None, mask)):
        with mode:
            q = torch.empty(1, 2, 40, 8, dtype=torch.bfloat16, requires_grad=True)
            k = torch.empty(1, 1, 40, 8, dtype=torch.bfloat16, requires_grad=True)
            v = torch.empty(1, 1, 40, 6, dtype=torch.bfloat16, requires_grad=True)
        with mode if inside else contextlib.nullcontext():
            options = {"block_mask": made, "enable_gqa": True, "return_lse": True}
            out, lse = foveal.flex_attention(q, k, v, mod, **options)
            grads = torch.autograd.grad(out.sum() + lse.sum(), (q, k, v))
        assert (out.shape, out.dtype) == ((1, 2, 40, 6), torch.bfloat16)
        assert (lse.shape, lse.dtype) == ((1, 2, 40), torch.float32)
        assert [g.shape for g in grads] == [q.shape, k.shape, v.shape]
    with mode:
        out = foveal.flex_attention(q, k, v, mods[3], enable_gqa=True)
        captured = torch.autograd.grad(out.sum(), table)
    assert captured[0].shape == table.shape


@pytest.mark.parametrize("impl", ["reference", "tiled", None])
def test_attend_of_fake_tensors_outside_of_their_mode(impl):
    """The backward pass too, whichever of the results it comes from."""
    with FakeTensorMode():
        q, k, v = (torch.empty(1, 2, 40, 8, requires_grad=True) for _ in range(3))
    for pick in (lambda out, lse: out, lambda out, lse: lse, torch.add):
        out, lse = foveal.attend(q, k, v, SlidingWindow(9), impl=impl, return_lse=True)
        found = pick(out.sum(), lse.sum())
        grads = torch.autograd.grad(found, (q, k, v), allow_unused=True)
        assert [g is None or g.shape == q.shape for g in grads] == [True] * 3


def test_meta_tensors_keep_their_graph():
    """A training step on the meta device finds its way back."""
    q, k, v = (torch.empty(1, 2, 8, 4, device="meta", requires_grad=True) for _ in range(3))
    grads = torch.autograd.grad(foveal.flex_attention(q, k, v).sum(), (q, k, v))
    assert [g.shape for g in grads] == [q.shape] * 3
