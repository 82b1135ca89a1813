"""What a process has set elsewhere, and what nobody may read, changes no result."""

import contextlib
import itertools

import pytest
import torch

import foveal
from foveal import patterns as P
from foveal.ops import PyramidBias
from foveal.ops.bias import WindowBias
from foveal.testing import assert_close, dense_attention

EMPTY = torch.tensor([[1, 0, 1], [1, 0, 0], [1, 0, 1]])  # nobody reads the second block
PATTERNS = [
    P.SlidingWindow(9),
    P.BlockSparse(EMPTY, 16),
    P.Neighborhood((6, 8), 3, dilation=2),
    P.Fixed(12, 3),
    P.TextImage(16, P.Axial((4, 8), causal=True)),
    P.Strided(7) & P.Blocks(16),
]
LENGTH = 48


def inputs(*extra):
    g = torch.Generator("cpu").manual_seed(0)
    shape = {"generator": g, "dtype": torch.float32, "device": "cpu"}
    tensors = [torch.randn(2, 2, LENGTH, 8, **shape) for _ in range(3)]
    return tensors + [torch.randn(*one, **shape) for one in extra]


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


STATES = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float16": lambda: default_dtype(torch.float16),
    "meta": lambda: torch.device("meta"),
}


def forget():
    from foveal.ops import bias, tiled
    from foveal.patterns import base, joined

    for one in (base._cached_tiles, tiled._plan, bias.window_columns, joined._clusters):
        one.cache_clear()


def everything(pattern, bias=None):
    """Output, log-sum-exp and all gradients of impl='tiled'."""
    given = [x.requires_grad_() for x in inputs((1, 2, LENGTH, LENGTH))]
    q, k, v, dense = given
    key_mask = torch.arange(LENGTH, device="cpu")[None].expand(2, -1) < 41
    out, lse = foveal.attend(
        q, k, v, pattern, bias=bias or dense, key_mask=key_mask, impl="tiled", return_lse=True
    )
    lse = lse.masked_fill(lse == -torch.inf, 0.0)
    grads = torch.autograd.grad((out.sin().sum() + lse.sum()), given, allow_unused=True)
    return [out, lse, *(g for g in grads if g is not None)]


@pytest.mark.parametrize("state", STATES)
def test_default_dtype_and_device_change_nothing(state):
    """Whatever new tensors are by default, results are the same; plans serve both ways."""
    g = torch.Generator().manual_seed(1)
    rows, columns = (torch.randn(2, 2, LENGTH, 5, generator=g) for _ in range(2))
    calls = [(one, None) for one in PATTERNS]
    calls += [(P.Halo((6, 8), 3, 1), WindowBias(rows, columns))]
    calls += [
        (P.Pyramid(4, causal=c), PyramidBias(torch.randn(15, 2, generator=g)))
        for c in (0 > 1, 1 > 0)
    ]
    for pattern, bias in calls:
        want = everything(pattern, bias)
        forget()
        with STATES[state]():
            got = everything(pattern, bias)
        for one, right in zip(got, want, strict=True):
            assert one.dtype == right.dtype
            assert_close(one, right, rtol=1e-6, name=f"{pattern}")
        for one, right in zip(everything(pattern, bias), want, strict=True):  # plans made there
            assert_close(one, right, rtol=1e-6, name=f"{pattern}")


@pytest.mark.parametrize("pattern", PATTERNS[:5], ids=repr)
def test_decoding_views_stand_on_the_cpu(pattern):
    """reads, keeps and counts under another default device."""
    with torch.device("meta"):
        assert pattern.num_pairs(LENGTH) == int(pattern.mask(LENGTH, device="cpu").sum())
        if pattern.is_causal:
            assert pattern.reads(20).device.type == "cpu"
            kept = pattern.keeps(20)
            assert isinstance(kept, range) or kept.device.type == "cpu"


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(
    "pattern",
    [*PATTERNS, P.Full(), P.Pyramid(4), P.Pyramid(4, causal=True), P.Halo((6, 8), 3, 1)],
    ids=repr,
)
def test_what_nobody_reads_may_be_anything(pattern, bad):
    """NaN and infinity in masked keys, and in keys that the pattern hides, leak nowhere."""
    q, k, v = inputs()
    key_mask = torch.arange(LENGTH)[None] < torch.tensor([[41], [30]])
    hidden = ~key_mask[:, None, :, None]
    if not isinstance(pattern, P.Pyramid):
        hidden = hidden | ~pattern.mask(LENGTH).any(0)[None, None, :, None]
    results = []
    for fill in (0.0, bad):
        x = [q, k.masked_fill(hidden, fill), v.masked_fill(hidden, fill)]
        x = [one.requires_grad_() for one in (q.clone(), *x[1:])]
        out = foveal.attend(*x, pattern, key_mask=key_mask, impl="tiled")
        results.append([out, *torch.autograd.grad(out.sin().sum(), x)])
    for clean, found in zip(*results, strict=True):
        assert bool(found.isfinite().all())
        assert_close(found, clean, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_biases_of_any_size(dtype):
    """-inf forbids a pair; the most negative number does not, and a row of it has a mean."""
    q, k, v = inputs()
    pattern, lowest = P.SlidingWindow(9, causal=False), torch.finfo(dtype).min
    bias = torch.zeros(LENGTH, LENGTH, dtype=dtype)
    bias[3], bias[5], bias[:, 7], bias[9, ::2] = lowest, -torch.inf, -torch.inf, lowest
    mask = pattern.mask(LENGTH) & (bias > -torch.inf)
    want, _ = dense_attention(q, k, v, mask, bias.clamp(min=lowest))
    got = foveal.attend(q, k, v, pattern, bias=bias, impl="tiled")
    assert_close(got, want, rtol=1e-3)  # logits near -65504 have steps of 0.004 in float32
    assert not got[:, :, 5].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_as_good_as_torch(dtype):
    """Rounding no worse than a small multiple of torch's own attention; heads may differ."""
    q, k, v = (3 * x for x in inputs())
    layouts = torch.stack([EMPTY, torch.ones(3, 3).long()])
    for pattern in (P.SlidingWindow(9), P.BlockSparse(layouts, 16) | P.SlidingWindow(3)):
        half = [x.to(dtype) for x in (q, k, v)]
        want, _ = dense_attention(*half, pattern.mask(LENGTH))
        theirs = torch.nn.functional.scaled_dot_product_attention(
            *half, attn_mask=pattern.mask(LENGTH)
        )
        ours = foveal.attend(*half, pattern, impl="tiled")
        assert (ours - want).abs().max() <= 4 * (theirs - want).abs().max() + 1e-3


def test_dropout_is_drawn_anew_and_repeats_under_a_seed():
    """Two calls differ; the same seed gives the same; the share dropped is about p."""
    q, k, v = inputs()
    ones = torch.ones_like(v)
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws += [foveal.attend(q, k, ones, P.Full(), dropout_p=0.3, impl="tiled")]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert abs(float(draws[0].mean()) - 1) < 0.05
    for one, other in itertools.pairwise(draws[1:]):
        assert not torch.equal(one, other)


def test_large_biases_keep_the_logits(monkeypatch):
    """Scores that stay in bfloat16 would lose all digits beside a bias of some hundreds."""
    monkeypatch.setattr("foveal.ops.tiled.multiplies_bfloat16", lambda: True)
    q, k, v, bias = inputs((1, 2, LENGTH, LENGTH))
    half = [x.bfloat16() for x in (q, k, v)]
    bias = 1e4 + bias
    pattern = P.SlidingWindow(20)
    want, _ = dense_attention(*half, pattern.mask(LENGTH), bias)
    got = foveal.attend(*half, pattern, bias=bias, impl="tiled")
    assert_close(got, want, rtol=1e-2)
