"""Dropped weights belong to the example: one call drops what calls of each example alone do."""

import numpy as np
import pytest
import torch

import foveal
from foveal import patterns as P
from foveal.common import by_example
from foveal.ops import dense

BATCH, HEADS, TOKENS = 5, 4, 36
HALO = P.Halo((6, 6), 3, 1)
LAYOUT = torch.Generator().manual_seed(0)


def given(pattern, heads=HEADS, kv_heads=2, tokens=TOKENS, dtype=torch.float32):
    torch.manual_seed(0)
    shapes = [(BATCH, count, tokens, 8) for count in (heads, kv_heads, kv_heads)]
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def results(sizes, tensors, pattern, impl, extras, seed=1):
    """out and gradients where a batch is cut so, whatever torch's generator holds."""
    outs, first = [], 0
    for size in sizes:
        torch.manual_seed(first)
        rows = slice(first, first + size)
        own = {name: cut(x, rows) for name, x in extras.items()}
        with by_example.rows_of_step(seed, 2, np.arange(first, first + size)):
            parts = [x[rows] for x in tensors]
            for _ in range(2):  # a second call drops otherwise
                out = foveal.attend(*parts, pattern, dropout_p=0.3, impl=impl, **own)
        outs.append(out)
        first += size
    out = torch.cat(outs)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return [out.detach(), *torch.autograd.grad(out, tensors, weight)]


def cut(x, rows):
    if isinstance(x, foveal.WindowBias):
        return foveal.WindowBias(*(part[rows] for part in x))
    return x[rows] if isinstance(x, torch.Tensor) and x.shape[0] == BATCH else x


def extras(kind):
    torch.manual_seed(1)
    return {
        "plain": {},
        "hidden keys": {"key_mask": torch.rand(BATCH, TOKENS) > 0.3},
        "a bias of each": {"bias": torch.randn(BATCH, 1, TOKENS, TOKENS)},
        "a bias of all": {"bias": torch.randn(TOKENS, TOKENS)},
        "a scale of each": {"scale": torch.rand(BATCH, HEADS, 1, 1)},
        "sinks and a cap": {"sinks": torch.randn(HEADS), "softcap": 3.0},
        "window": {
            "bias": foveal.WindowBias(*(torch.randn(BATCH, HEADS, TOKENS, 5) for _ in range(2)))
        },
    }[kind]


PATTERNS = {
    "window": P.SlidingWindow(7),
    "full": P.Full(causal=True),
    "heads": P.BlockSparse(torch.rand(HEADS, 9, 9, generator=LAYOUT) > 0.5, 4),
    "pooled": P.Pyramid(4),
    "halo": HALO,
}
SHAPED = ("hidden keys", "a bias of each", "a bias of all", "a scale of each", "sinks and a cap")
CASES = [
    *((impl, name, "plain") for impl in ("native", "tiled", "reference") for name in PATTERNS),
    *(("dense", name, "plain") for name in PATTERNS if name != "pooled"),
    *((impl, "window", kind) for impl in ("native", "tiled", "dense") for kind in SHAPED),
    *((impl, "halo", "window") for impl in ("native", "tiled", "dense", "reference")),
]


@pytest.mark.parametrize(("impl", "name", "kind"), CASES)
def test_a_call_drops_what_calls_of_each_example_drop(impl, name, kind):
    """Results and gradients, in every implementation; another training drops otherwise."""
    pattern, options = PATTERNS[name], extras(kind)
    tensors = given(pattern)
    whole = results([BATCH], tensors, pattern, impl, options)
    for sizes in ([1] * BATCH, [2, 3]):
        for found, want in zip(
            results(sizes, tensors, pattern, impl, options), whole, strict=True
        ):
            torch.testing.assert_close(found, want, rtol=1e-5, atol=2e-5)
    other = results([BATCH], tensors, pattern, impl, options, seed=2)
    assert not torch.allclose(other[0], whole[0], atol=0.01)


@pytest.mark.parametrize(
    ("pattern", "tokens", "heads"),
    [(P.SlidingWindow(16), 128, 2), (P.Full(causal=True), 128, 1), (P.Strided(8), 96, 2)],
)
def test_neither_batch_nor_gradients_choose_what_is_dropped(pattern, tokens, heads):
    """Where estimates of one example and of many, with and without gradients, choose apart."""
    tensors = given(pattern, heads, heads, tokens)
    whole = results([BATCH], tensors, pattern, None, {})
    for found, want in zip(results([1] * BATCH, tensors, pattern, None, {}), whole, strict=True):
        torch.testing.assert_close(found, want, rtol=1e-5, atol=2e-5)
    outs = []
    for grad in (True, False):
        torch.manual_seed(0)
        with torch.set_grad_enabled(grad):
            outs.append(foveal.attend(*tensors, pattern, dropout_p=0.5))
    torch.testing.assert_close(outs[0], outs[1], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("pairs", [2 * HEADS * TOKENS**2, HEADS * TOKENS**2 // 3])
def test_dense_attention_in_turns(pairs, monkeypatch):
    """Two examples a time, and a third of one, which the backward pass computes again: gradients
    by differences of the same loss."""
    pattern = P.SlidingWindow(7)
    tensors = given(pattern, dtype=torch.float64)
    monkeypatch.setattr(dense, "MOST_PAIRS", pairs)
    whole = results([BATCH], tensors, pattern, "dense", {})
    for found, want in zip(results([2, 3], tensors, pattern, "dense", {}), whole, strict=True):
        torch.testing.assert_close(found, want, rtol=1e-10, atol=1e-10)
    weight = torch.linspace(-1, 1, whole[0].numel(), dtype=torch.float64).view(whole[0].shape)
    for place, grad in enumerate(whole[1:]):
        move, ends = torch.randn_like(grad), []
        for step in (1e-6, -1e-6):
            moved = [x + step * move if at == place else x for at, x in enumerate(tensors)]
            ends.append((results([BATCH], moved, pattern, "dense", {})[0] * weight).sum())
        slope = (ends[0] - ends[1]) / 2e-6
        torch.testing.assert_close((grad * move).sum(), slope, rtol=1e-6, atol=1e-6)
    blind = [torch.zeros_like(x, requires_grad=True) for x in tensors[:2]]
    shown = torch.eye(TOKENS, dtype=torch.float64).expand(BATCH, 2, -1, -1).clone()
    shown.requires_grad_()
    drops = results([BATCH], [*blind, shown], P.Full(), "dense", {})[0]
    assert len(drops.flatten(0, 2).unique(dim=0)) == BATCH * HEADS * TOKENS  # turns draw apart
