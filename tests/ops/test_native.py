"""The native kernel: building it, doing without it, and sizes that its vectors do not divide."""

from __future__ import annotations

import os
import shutil
import threading

import pytest
import torch
from emulated.kernels import emulate

import foveal
from foveal import patterns as P
from foveal.common.processor import runnable_classes
from foveal.ops import known, native
from foveal.ops.native import build, flags
from foveal.ops.reference import masked_attention
from foveal.testing import assert_close

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}

_skip = pytest.mark.skipif(
    native.why_not("cpu", torch.float32) is not None, reason="no native kernel here"
)


def needs_kernel(test):
    """For tests of what the kernel computes; `make aarch64` runs them on an emulator."""
    return pytest.mark.kernel(_skip(test))


@pytest.fixture
def unbuilt(tmp_path, monkeypatch):
    """An empty cache, nothing loaded, and no library of a wheel."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("FOVEAL_NATIVE", raising=False)
    for name in ("_loaded", "_failure"):
        monkeypatch.setattr(build, name, {})
    monkeypatch.setattr(build, "BUILT", tmp_path / "no-wheel")
    known.CALLS.clear()
    return tmp_path / "foveal" / "native"


def tensors(length, dim=16, dim_v=16, dtype=torch.float32, heads=2, kv_heads=2, batch=2):
    torch.manual_seed(0)
    return [
        torch.randn(batch, count, length, size).to(dtype).requires_grad_()
        for count, size in ((heads, dim), (kv_heads, dim), (kv_heads, dim_v))
    ]


def check(pattern, length, **sizes):
    """Outputs and gradients beside the float64 oracle."""
    given = tensors(length, **sizes)
    exact = [x.detach().double().requires_grad_() for x in given]
    out = foveal.attend(*given, pattern, impl="native")
    want, _ = masked_attention(*exact, pattern.mask(length))
    rtol = TOLERANCE[out.dtype]
    assert_close(out, want, rtol=rtol)
    weight = torch.randn(out.shape, dtype=torch.float64)
    grads = torch.autograd.grad((out * weight).sum(), given)
    expected = torch.autograd.grad((want * weight).sum(), exact)
    for got, grad in zip(grads, expected, strict=True):
        assert_close(got, grad, rtol=rtol)


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("dim", "dim_v"), [(1, 1), (3, 65), (24, 7), (80, 80), (128, 130)])
def test_any_head_dim(dim, dim_v, dtype):
    """Features that fill no whole vector, and odd ones where bfloat16 goes in pairs."""
    check(P.SlidingWindow(40), 150, dim=dim, dim_v=dim_v, dtype=dtype)


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tiles_of_more_queries_than_a_word(dtype):
    """A block of 12 x 12 pixels has 144 queries: three words of a mask."""
    check(P.Halo((25, 30), 12, 2), 750, dtype=dtype)
    check(P.Halo((20, 20), 12, 2) & P.Neighborhood(20, 9), 400, dtype=dtype)


@needs_kernel
@pytest.mark.parametrize("level", ["avx2", "generic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_instruction_sets(level, dtype, monkeypatch):
    """Narrower vectors give the same numbers; a processor without AVX-512 uses them."""
    if level not in runnable_classes():
        pytest.skip(f"this processor cannot run {level}")
    monkeypatch.setenv("FOVEAL_NATIVE", level)
    check(P.TextImage(20, P.Neighborhood((8, 9), 5, causal="raster")), 92, dtype=dtype)
    check(P.Halo((13, 21), 8, 3), 273, dim=20, kv_heads=1, dtype=dtype)


@pytest.mark.skipif(
    "avx2" not in runnable_classes() or shutil.which("c++") is None,
    reason="the vectors are made of AVX2's",
)
def test_sixteen_lanes_without_avx512(unbuilt, monkeypatch):
    """The source as for AVX-512 and its bfloat16 is right; `--emulate avx512` asks much more."""
    sooner = ["-O0" if flag == "-O3" else flag for flag in flags.FLAGS]
    monkeypatch.setattr(flags, "FLAGS", tuple(sooner))
    emulate("avx512+bf16", unbuilt, monkeypatch)
    for dtype in TOLERANCE:
        check(P.SlidingWindow(40), 150, dim=3, dim_v=65, dtype=dtype)
        check(P.Halo((13, 21), 8, 3), 273, dim=20, kv_heads=1, dtype=dtype)
    assert build._loaded["avx512+bf16"].foveal_width() == 16


@pytest.mark.parametrize("level", ["avx512+bf16", "avx512", "avx2"])
def test_pairs_of_bfloat16_are_checked_before_they_are_used(level, monkeypatch):
    """They have instructions of their own: a kernel that is wrong in them alone is given up."""
    given_up = []
    monkeypatch.setattr(native.op, "agrees", lambda *about: torch.bfloat16 not in about)
    monkeypatch.setattr(build, "give_up", lambda wanted, reason: given_up.append(wanted))
    assert native.op._right.__wrapped__(level) is (level != "avx512+bf16")
    assert given_up == ([level] if level == "avx512+bf16" else [])


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_head_on_many_threads(dtype):
    """With fewer heads than threads the tiles of a head are shared; the sums stay exact."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        check(P.SlidingWindow(70), 500, heads=1, kv_heads=1, batch=1, dtype=dtype)
        bias = torch.randn(1, 1, 300, 300, requires_grad=True)
        q, k, v = tensors(300, heads=4, kv_heads=2)
        grads = []
        for impl in ("native", "tiled"):
            out = foveal.attend(q, k, v, P.SlidingWindow(70), bias=bias, impl=impl)
            grads.append(torch.autograd.grad(out.square().sum(), (bias, k)))
        for got, want in zip(*grads, strict=True):
            assert_close(got, want, rtol=1e-5)
    finally:
        torch.set_num_threads(before)


@needs_kernel
def test_large_logits_and_nan():
    """Logits of thousands stay finite, and a NaN in the input is a NaN in the output."""
    q, k, v = tensors(100)
    big = foveal.attend(1000 * q, 1000 * k, v, P.SlidingWindow(30), impl="native")
    assert torch.isfinite(big).all()
    poisoned = q.detach().clone()
    poisoned[0, 0, 50] = torch.nan
    out = foveal.attend(poisoned, k, v, P.SlidingWindow(30), impl="native")
    assert out[0, 0, 50].isnan().all()
    assert torch.isfinite(out[0, 0, :50]).all()


def test_nothing_is_compiled_at_import(tmp_path, after_torch):
    """Importing foveal neither builds nor loads the kernel."""
    code = "import foveal; from foveal.ops.native import build; assert not build._loaded"
    after_torch(code, {**os.environ, "XDG_CACHE_HOME": str(tmp_path)})
    assert not list(tmp_path.rglob("*.so"))


@pytest.mark.usefixtures("unforced")
def test_without_a_compiler_everything_works(unbuilt, monkeypatch):
    """attend() takes tiled, explain() says what lacks, and a named native raises it."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    q, k, v = tensors(3000)
    pattern = P.SlidingWindow(8)
    want = foveal.attend(q, k, v, pattern, impl="tiled")
    assert torch.equal(foveal.attend(q, k, v, pattern), want)
    told = foveal.explain(pattern, 3000)
    assert told.impl == "tiled"
    assert "no C++ compiler" in told.alternatives["native"]
    with pytest.raises(ValueError, match=r"native.*no C\+\+ compiler.*tiled"):
        foveal.attend(q, k, v, pattern, impl="native")


@pytest.mark.usefixtures("unforced")
def test_a_compiler_that_fails_is_asked_once(unbuilt, monkeypatch, tmp_path):
    """A failing compiler leaves tiled in its place, and its message with whoever insists."""
    fake = tmp_path / "broken-c++"
    fake.write_text(f"#!/bin/sh\necho x >> {tmp_path}/calls\necho 'no such flag' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    q, k, v = tensors(3000)
    pattern = P.SlidingWindow(8)
    for _ in range(2):
        foveal.attend(q, k, v, pattern)
    calls = len((tmp_path / "calls").read_text().split())
    assert calls == len(flags.THREADING) * len(build.cache_folders("native"))
    with pytest.raises(ValueError, match="no such flag"):
        foveal.attend(q, k, v, pattern, impl="native")
    assert not list(unbuilt.iterdir())


@pytest.mark.usefixtures("unforced")
def test_it_can_be_turned_off(monkeypatch):
    """FOVEAL_NATIVE=0 means tiled; a misspelt setting is named."""
    monkeypatch.setenv("FOVEAL_NATIVE", "0")
    assert foveal.explain(P.SlidingWindow(8), 3000).impl == "tiled"
    monkeypatch.setenv("FOVEAL_NATIVE", "sse9")
    assert "sse9" in native.why_not("cpu", torch.float32)


@pytest.mark.parametrize(
    ("dtype", "words"), [(torch.float16, "float16"), (torch.float64, "float64")]
)
def test_it_names_a_dtype_that_it_lacks(dtype, words):
    """An explicit impl never falls back."""
    q, k, v = tensors(100, dtype=dtype)
    with pytest.raises(ValueError, match=words):
        foveal.attend(q, k, v, P.SlidingWindow(8), impl="native")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="no compiler")
def test_threads_build_it_once(unbuilt, monkeypatch):
    """Callers that meet wait for one build; what they leave is one complete library."""
    monkeypatch.setenv("FOVEAL_NATIVE", "generic")
    sooner = ["-O1" if flag == "-O3" else flag for flag in flags.FLAGS]
    monkeypatch.setattr(flags, "FLAGS", tuple(sooner))
    found = []
    threads = [threading.Thread(target=lambda: found.append(build.library())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, found))) == 1
    assert [path.suffix for path in unbuilt.iterdir()] == [".so"]


def test_an_implementation_can_be_preferred(monkeypatch):
    """FOVEAL_IMPL names what attend() takes where it can; elsewhere the usual choice stands."""
    q, k, v = tensors(300, dtype=torch.float64)
    pattern = P.SlidingWindow(8)
    monkeypatch.setenv("FOVEAL_IMPL", "reference")
    want = foveal.attend(q, k, v, pattern, impl="reference")
    assert torch.equal(foveal.attend(q, k, v, pattern), want)
    assert foveal.explain(pattern, 300).impl == "reference"
    monkeypatch.setenv("FOVEAL_IMPL", "native")  # which has no float64
    assert_close(foveal.attend(q, k, v, pattern), want, rtol=1e-10)
    monkeypatch.setenv("FOVEAL_IMPL", "quick")
    with pytest.raises(ValueError, match="quick"):
        foveal.attend(q, k, v, pattern)


# -- what nobody may read -------------------------------------------------------------------------

UNEVEN = {
    "window": (P.SlidingWindow(20), 130),
    "halo": (P.Halo((13, 21), 8, 3), 273),
    "causal": (P.Full(causal=True), 100),
    "text and image": (P.TextImage(20, P.Neighborhood((8, 9), 5, causal="raster")), 92),
}


def results(pattern, given, grad, dtype=torch.float32, **options):
    """out and the gradients of q, k, v (and of a bias, if it needs one)."""
    given = [x.to(dtype, copy=True).requires_grad_() for x in given]
    out = foveal.attend(*given, pattern, impl="native", **options)
    bias = [x for x in options.values() if isinstance(x, torch.Tensor) and x.requires_grad]
    return [out, *torch.autograd.grad(out, given + bias, grad.to(dtype))]


def poison(given, names, at, value):
    """q, k, v and the gradient of out, those of `names` overwritten at some tokens."""
    changed = [x.detach().clone() for x in given]
    for name, x in zip("qkvg", changed, strict=True):
        if name in names:
            x[:, :, at] = value
    return changed


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 3e38])
@pytest.mark.parametrize("name", UNEVEN)
def test_nothing_reaches_who_does_not_read_it(name, value, dtype):
    """A bad token changes nothing for queries that do not read it, nor for keys of others."""
    pattern, length = UNEVEN[name]
    mask = pattern.mask(length)
    given = [x.detach() for x in tensors(length, heads=2, kv_heads=1)]
    given.append(torch.randn_like(given[0]))
    clean = results(pattern, given[:3], given[3], dtype)
    for names in ("k", "v", "kv", "q", "g", "qkvg"):
        *bad, grad = poison(given, names, 50, value)
        got = results(pattern, bad, grad, dtype)
        queries = ~mask[:, 50] if set(names) & set("kv") else torch.ones(length, dtype=torch.bool)
        queries[50] &= not set(names) & set("qg")
        keys = ~mask[~queries].any(0)
        assert queries.any()
        for x, y, rows in zip(got, clean, (queries, queries, keys, keys), strict=True):
            if value == 3e38:  # a tile with huge logits computes its weights in another way
                assert_close(x[:, :, rows], y[:, :, rows], rtol=TOLERANCE[dtype])
            else:
                assert torch.equal(x[:, :, rows], y[:, :, rows]), names


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", UNEVEN)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_padding_may_hold_anything(name, value, dtype):
    """NaN behind a key_mask changes nothing, and its gradients are exactly zero."""
    pattern, length = UNEVEN[name]
    given = [x.detach() for x in tensors(length, dim=13, dim_v=7, heads=4, kv_heads=2)]
    grad = torch.randn(*given[0].shape[:3], 7)
    real = torch.ones(2, length, dtype=torch.bool)
    real[0, length - 30 :] = real[1, 5:17] = False
    clean = results(pattern, given, grad, dtype, key_mask=real)
    for x in given[1:]:
        x.transpose(1, 2)[~real] = value
    got = results(pattern, given, grad, dtype, key_mask=real)
    for x, y in zip(got, clean, strict=True):
        assert torch.equal(x, y)
    for x in got[2:]:
        assert (x.transpose(1, 2)[~real] == 0).all()


@needs_kernel
def test_a_bias_of_minus_infinity_is_a_mask():
    """Rows without keys give zeros and no gradient, even where their query is NaN."""
    pattern, length = P.SlidingWindow(20), 130
    given = [x.detach() for x in tensors(length)]
    grad = torch.randn_like(given[0])
    hidden = torch.rand(length, length) < 0.3
    hidden[[3, 77]] = True
    hidden[:, 60] = True
    bias = torch.zeros(length, length).masked_fill(hidden, -torch.inf)
    exact = [x.double().requires_grad_() for x in given]
    want, _ = masked_attention(*exact, pattern.mask(length) & ~hidden)
    expected = [want, *torch.autograd.grad(want, exact, grad.double())]
    *bad, grad = poison([*given, grad], "q", [3, 77], torch.nan)
    *bad, grad = poison([*bad, grad], "kv", 60, torch.nan)
    for got, right in zip(results(pattern, bad, grad, bias=bias), expected, strict=True):
        assert_close(got, right, rtol=2e-5)


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_lowest_number_of_a_bias_is_a_number(dtype):
    """A row of nothing else has equal logits; beside others it weighs nothing."""
    pattern, length = P.SlidingWindow(20), 130
    given = [x.detach() for x in tensors(length)]
    grad = torch.randn_like(given[0])
    bias = torch.zeros(length, length, dtype=dtype)
    bias[torch.rand(length, length) < 0.3] = torch.finfo(dtype).min
    bias[[3, 77, 129]] = torch.finfo(dtype).min
    bias[10] = -60_000
    got = results(pattern, given, grad, bias=bias.requires_grad_())
    exact = [x.double().requires_grad_() for x in given]
    wide = bias.detach().double().clamp(min=-1e30).requires_grad_()
    want, _ = masked_attention(*exact, pattern.mask(length), bias=wide)
    expected = [want, *torch.autograd.grad(want, [*exact, wide], grad.double())]
    rounded = 2e-2 if dtype in (torch.bfloat16, torch.float16) else 2e-3
    for x, y in zip(got, expected, strict=True):
        assert_close(x, y, rtol=rounded)


@needs_kernel
@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1, 130, 130), (2, 2, 1, 130), (1, 2, 130, 1)])
def test_under_another_default_dtype(default, shape):
    """The kernel's pointers are what they are said to be, whatever the process prefers."""
    given = [x.detach() for x in tensors(130)]
    grad = torch.randn_like(given[0])
    bias = torch.randn(shape, requires_grad=True)
    want = results(P.SlidingWindow(20), given, grad, bias=bias)
    torch.set_default_dtype(default)
    try:
        got = results(P.SlidingWindow(20), given, grad, bias=bias)
    finally:
        torch.set_default_dtype(torch.float32)
    for x, y in zip(got, want, strict=True):
        assert x.dtype == torch.float32
        assert torch.equal(x, y)


@needs_kernel
@pytest.mark.parametrize("size", [30, 3000])
def test_large_logits_have_exact_gradients(size):
    """The log-sum-exp is too coarse for weights where logits are large; they sum to one anyway."""
    given = [x.detach() for x in tensors(100)]
    exact = [x.double().requires_grad_() for x in given]
    bias = torch.full((100, 100), -float(size) * 1000)
    got = results(P.SlidingWindow(30), given, torch.ones_like(given[0]), bias=bias)
    want, _ = masked_attention(*exact, P.SlidingWindow(30).mask(100))
    weight = torch.autograd.grad(want.sum(), exact[2])[0]
    # the logits themselves are rounded to `size / 10000`, the sum of their weights is not
    torch.testing.assert_close(got[3].double().sum(2), weight.sum(2), rtol=1e-4, atol=1e-4)


def test_words_of_masks():
    """A bit a query, whatever the sizes of a mask."""
    from foveal.ops.native.plans import mask_words

    for shape in ((1, 1, 1), (3, 64, 1), (2, 65, 7), (1, 130, 16), (2, 9, 1)):
        mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.5
        words = mask_words(mask)
        assert words.shape == (shape[0], -(-shape[1] // 64), shape[2])
        for tile in range(shape[0]):
            for query in range(shape[1]):
                bits = words[tile, query // 64] >> (query % 64) & 1
                assert torch.equal(bits.bool(), mask[tile, query])
