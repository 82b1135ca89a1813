"""Calls in which nobody reads anything have zeros, and every derivative, like any other."""

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

import foveal
from foveal import patterns as P

IMPLS = ["reference", "dense", "tiled", None]


def inputs(n_queries: int, n_keys: int, batch: int = 2) -> list[torch.Tensor]:
    sizes = ((2, n_queries), (1, n_keys), (1, n_keys))
    return [torch.randn(batch, h, n, 4, dtype=torch.float64).requires_grad_() for h, n in sizes]


def assert_zero_twice(out: torch.Tensor, tensors: list[torch.Tensor]) -> None:
    """Zeros, and zeros for gradients that are themselves differentiated."""
    assert not out.any()
    weight = torch.randn(out.shape, dtype=out.dtype).requires_grad_()
    first = torch.autograd.grad((out * weight).sum(), tensors, create_graph=True)
    assert all(not part.any() for part in first)
    loss = (out * weight).sum() + sum((part * part).sum() for part in first)
    assert all(
        not x.any() for x in torch.autograd.grad(loss, tensors, allow_unused=True) if x is not None
    )


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(
    ("pattern", "n_queries", "n_keys", "q_offset"),
    [
        (P.Documents(()), 7, 7, 0),
        (P.Documents((0, 0)) & P.SlidingWindow(3), 7, 7, 0),
        (P.Documents((4, 1)), 2, 7, -1),
        (P.Prefix(0), 3, 7, 2),
        (P.SlidingWindow(2), 0, 7, -1),
        (P.Full(), 3, 0, 0),
    ],
)
def test_attend(pattern: P.Pattern, n_queries: int, n_keys: int, q_offset: int, impl: str | None):
    """Padding, prefixes of nothing, no queries and no keys."""
    tensors = inputs(n_queries, n_keys)
    if impl == "tiled" and n_queries > n_keys:
        pytest.skip("it refuses more queries than keys")
    assert_zero_twice(foveal.attend(*tensors, pattern, q_offset=q_offset, impl=impl), tensors)


@pytest.mark.parametrize("mod", [None, lambda score, b, h, q, k: score * 2])
def test_flex_attention(mod):
    """A BlockMask that lists no block."""
    nothing = create_block_mask(lambda b, h, q, k: k < 0, None, None, 9, 11, device="cpu")
    tensors = inputs(9, 11)
    out = foveal.flex_attention(*tensors, mod, nothing, enable_gqa=True)
    assert_zero_twice(out, tensors)


@pytest.mark.parametrize("impl", ["reference", "tiled", None])
@pytest.mark.parametrize(
    ("batch", "n_queries", "n_keys", "count"),
    [(0, 9, 9, 2), (0, 0, 0, 0), (0, 4, 9, 3), (2, 0, 0, 2), (2, 0, 9, 1), (2, 5, 0, 1)],
)
def test_attend_selected(batch: int, n_queries: int, n_keys: int, count: int, impl: str | None):
    """No sequences, no queries, no keys."""
    tensors = inputs(n_queries, n_keys, batch)
    blocks = torch.full((batch, 1, -(-n_queries // 4), count), -1)
    assert_zero_twice(foveal.attend_selected(*tensors, blocks, 4, impl=impl), tensors)


def test_attend_varlen():
    """No sequences at all."""
    tensors = [torch.randn(0, 2, 4, dtype=torch.float64).requires_grad_() for _ in range(3)]
    assert_zero_twice(foveal.attend_varlen(*tensors, [0], [0], P.SlidingWindow(2)), tensors)
