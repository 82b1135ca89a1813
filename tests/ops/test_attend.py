"""attend() against the float64 oracle, forward and backward, in every implementation."""

from functools import lru_cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

import foveal
from foveal import patterns as P
from foveal.ops import WindowBias, native, tiled
from foveal.ops.native import build
from foveal.ops.reference import masked_attention
from foveal.testing import assert_close

TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}

CASES = [
    (P.Full(), 97),
    (P.Full(causal=True), 130),
    (P.SlidingWindow(40), 200),
    (P.SlidingWindow(40, causal=False), 201),
    (P.Blocks(30, True, 1), 131),
    (P.Blocks(100), 150),
    (P.Halo((13, 21), 8, 3), 273),
    (P.Halo((16, 24), 4, 3), 384),
    (P.Neighborhood((17, 12), 5), 204),
    (P.Neighborhood((17, 12), 3, 2), 204),
    (P.Neighborhood((17, 12), 5, border="shift"), 204),
    (P.Neighborhood((17, 12), 5, causal="corner"), 190),
    (P.Neighborhood((9, 12), 5, causal="raster", border="wrap"), 108),
    (P.Axial((9, 7), "row", True), 60),
    (P.Axial((9, 7), "column"), 63),
    (P.Neighborhood((5, 6, 7), (3, 2, 5), (1, 2, 1), (True, False, False), "shift"), 210),
    (P.Neighborhood((6, 8, 8), 4, stride=2, shift=1), 384),
    (P.Halo((4, 7, 9), (2, 4, 4), 1, causal=(True, False, False)), 252),
    (P.Axial((5, 6, 7), ("height", "width"), True), 200),
    (P.Blocks((2, 4, 4), size=(5, 9, 10), shift=(1, 2, 2)), 450),
    (P.Strided(11), 140),
    (P.Fixed(16, 3), 140),
    (P.BlockSparse.fixed(128, 16), 128),
    (P.BlockSparse.bigbird(128, 16, seed=0), 120),
    (P.SlidingWindow(9) | P.Strided(20), 150),
    (P.Halo((10, 12), 4, 3) & P.Neighborhood((10, 12), 7), 120),
    (P.TextImage(20, P.Neighborhood((8, 9), 5, causal="raster")), 92),
    (P.TextImage(70, P.Axial((8, 9), "row", True, True)), 133),
    (P.TextImage(25, P.Axial((8, 9), "column", True)), 96),
]


def needs(impl, dtype=torch.float32):
    """Skip the test where an implementation cannot be had."""
    if impl != "native":
        return
    if dtype == torch.float64:
        pytest.skip("the native kernel has no float64")
    if reason := native.why_not("cpu", dtype):
        pytest.skip(reason)


def inputs(length, heads=4, kv_heads=4, dim=16, dim_v=24, dtype=torch.float64, batch=2):
    """q, k, v in token-major memory, as projections leave them."""

    def one(count, size):
        x = torch.randn(batch, length, count, size, dtype=torch.float64).transpose(1, 2)
        return x.to(dtype).requires_grad_()

    return one(heads, dim), one(kv_heads, dim), one(kv_heads, dim_v)


def finite(x):
    return torch.where(torch.isfinite(x), x, 0.0)


def run(call, tensors, with_lse):
    """Outputs, log-sum-exp and all gradients of a call."""
    extra = tensors[3] if len(tensors) > 3 else None
    out, lse = call(*tensors[:3], extra)
    torch.manual_seed(1)
    loss = (out * torch.randn(out.shape, dtype=torch.float64)).sum()
    if with_lse:
        loss = loss + (finite(lse) * torch.randn(lse.shape, dtype=torch.float64)).sum()
    return out, lse, torch.autograd.grad(loss, tensors)


def expected(tensors, pattern, length, key_mask, with_lse):
    """The same in float64, by the oracle."""

    def oracle(q, k, v, extra):
        return masked_attention(q, k, v, pattern.mask(length), bias=extra, key_mask=key_mask)

    return run(oracle, [x.detach().double().requires_grad_() for x in tensors], with_lse)


def compare(tensors, wanted, pattern, impl, key_mask):
    """One call beside what the oracle gives for it."""
    with_lse, dtype = impl != "dense", tensors[0].dtype

    def ours(q, k, v, extra):
        options = {"bias": extra, "key_mask": key_mask, "impl": impl}
        if with_lse:
            return foveal.attend(q, k, v, pattern, return_lse=True, **options)
        return foveal.attend(q, k, v, pattern, **options), None

    out, lse, grads = run(ours, tensors, with_lse)
    want, want_lse, want_grads = wanted
    rtol = TOLERANCE[dtype]
    assert out.dtype == dtype
    assert_close(out, want, rtol=rtol, name="out")
    if with_lse:
        assert torch.equal(torch.isfinite(lse), torch.isfinite(want_lse))
        assert_close(finite(lse), finite(want_lse), rtol=rtol, name="lse")
    for name, got, right in zip(("dq", "dk", "dv", "dbias"), grads, want_grads, strict=False):
        assert_close(got, right, rtol=rtol, name=name)


def check(pattern, length, impl, *, kv_heads=4, bias=None, key_mask=None, dtype=torch.float64):
    """Outputs, log-sum-exp and all gradients of one call equal the oracle's."""
    tensors = [*inputs(length, kv_heads=kv_heads, dtype=dtype)]
    if bias is not None:
        tensors.append(bias.to(dtype).requires_grad_())
    wanted = expected(tensors, pattern, length, key_mask, impl != "dense")
    compare(tensors, wanted, pattern, impl, key_mask)


@lru_cache(maxsize=4)
def drawn(pattern, length, filled, with_lse):
    """Tensors, a key mask, and the oracle's results: asked once for all that compute them.

    The numbers are float32's, and so the same in float64.
    """
    torch.manual_seed(int(filled))
    tensors, key_mask = [*inputs(length, kv_heads=2 if filled else 4, dtype=torch.float32)], None
    if filled:
        key_mask = torch.rand(2, length) > 0.3
        key_mask[1] = False
        tensors.append(torch.randn(2, 4, length, length))
    return tensors, key_mask, expected(tensors, pattern, length, key_mask, with_lse)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("impl", ["tiled", "native", "dense", "reference"])
@pytest.mark.parametrize(("pattern", "length"), CASES, ids=str)
def test_every_pattern_equals_the_oracle(pattern, length, impl, dtype):
    """Every pattern and implementation, with bias, padding and a sequence of padding only."""
    needs(impl, dtype)
    for filled in (False, True):
        tensors, key_mask, wanted = drawn(pattern, length, filled, impl != "dense")
        tensors = [x.detach().to(dtype).requires_grad_() for x in tensors]
        compare(tensors, wanted, pattern, impl, key_mask)


@pytest.mark.parametrize(
    ("impl", "dtype"),
    [("tiled", torch.bfloat16), ("tiled", torch.float16), ("native", torch.bfloat16)],
)
@pytest.mark.parametrize(("pattern", "length"), CASES[::4], ids=str)
def test_half_precision(pattern, length, impl, dtype):
    """Half-precision inputs lose no more than the rounding of operands costs."""
    needs(impl, dtype)
    torch.manual_seed(0)
    check(pattern, length, impl, dtype=dtype)
    key_mask = torch.rand(2, length) > 0.3
    key_mask[1] = False
    check(pattern, length, impl, kv_heads=2, key_mask=key_mask, dtype=dtype)


def test_chunks_do_not_change_a_result(monkeypatch):
    """Tiles a few at a time, or all at once: the same up to rounding, in bfloat16 rows as well."""
    for dtype in (torch.float64, torch.bfloat16):
        for size in (1, 1 << 14, 1 << 30):
            monkeypatch.setitem(tiled.CHUNK, "cpu", size)
            check(P.TextImage(70, P.Neighborhood((16, 24), 5)), 454, "tiled", dtype=dtype)
            check(P.SlidingWindow(40), 400, "tiled", kv_heads=2, dtype=dtype)


@settings(deadline=None, max_examples=40)
@given(
    length=st.integers(1, 200),
    window=st.integers(1, 90),
    causal=st.booleans(),
    kv_heads=st.sampled_from([1, 2, 4]),
    bias=st.sampled_from([None, (1, 1, 1, 0), (2, 1, 0, 0), (1, 4, 0, 1), (0,)]),
    masked=st.booleans(),
)
@pytest.mark.parametrize(("impl", "dtype"), [("tiled", torch.float64), ("native", torch.float32)])
def test_drawn_windows(impl, dtype, length, window, causal, kv_heads, bias, masked):
    """Any size, grouping, padding and broadcast form of the bias (0 stands for the length)."""
    needs(impl, dtype)
    torch.manual_seed(length)
    key_mask = torch.rand(2, length) > 0.5 if masked else None
    if bias is not None:
        bias = torch.randn([n or length for n in bias], dtype=torch.float64)
    check(
        P.SlidingWindow(window, causal),
        length,
        impl,
        kv_heads=kv_heads,
        bias=bias,
        key_mask=key_mask,
        dtype=dtype,
    )


@settings(deadline=None, max_examples=25)
@given(
    size=st.tuples(st.integers(1, 19), st.integers(1, 19)),
    block=st.sampled_from([2, 4, 8, (4, 8), (10, 8)]),
    halo=st.integers(0, 4),
    stride=st.sampled_from([1, 2]),
    masked=st.booleans(),
)
@pytest.mark.parametrize(("impl", "dtype"), [("tiled", torch.float64), ("native", torch.float32)])
def test_window_bias_equals_its_dense_form(impl, dtype, size, block, halo, stride, masked):
    """The bias inside the tiles and the n x n tensor give the same outputs and gradients."""
    needs(impl, dtype)
    torch.manual_seed(0)
    pattern = P.Halo(size, block, halo, stride)
    n_keys = size[0] * size[1]
    n_queries = pattern.num_queries(n_keys)
    q, _, _ = inputs(n_queries)
    _, k, v = inputs(n_keys, kv_heads=2)
    shapes = ((2, 4, n_queries, n) for n in pattern.window)
    parts = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    key_mask = torch.rand(2, n_keys) > 0.3 if masked else None
    weight = torch.randn(2, 4, n_queries, 24, dtype=torch.float64)
    results = []
    for name, precision in ((impl, dtype), ("reference", torch.float64)):
        given_inputs = [x.detach().to(precision).requires_grad_() for x in (q, k, v, *parts)]
        bias = WindowBias(*given_inputs[3:])
        options = {"bias": bias, "key_mask": key_mask, "impl": name}
        out = foveal.attend(*given_inputs[:3], pattern, **options)
        grads = torch.autograd.grad((out * weight).sum(), given_inputs)
        results.append([out, *grads])
    for got, want in zip(*results, strict=True):
        assert (got - want).abs().max() < (1e-10 if dtype == torch.float64 else 1e-4)


EXACT = [("tiled", torch.float64), ("dense", torch.float64), ("reference", torch.float64)]
EVERY = [*EXACT, ("native", torch.float32)]


@pytest.mark.parametrize(("impl", "dtype"), EVERY)
def test_additive_minus_infinity_is_a_mask(impl, dtype):
    """A bias of -inf forbids a pair; a row of them gives zeros, not NaN."""
    needs(impl, dtype)
    q, k, v = inputs(70, dtype=dtype)
    bias = torch.zeros(70, 70, dtype=dtype)
    bias[:, 3] = -torch.inf
    bias[5] = -torch.inf
    pattern = P.SlidingWindow(20)
    out = foveal.attend(q, k, v, pattern, bias=bias, impl=impl)
    assert torch.isfinite(out).all()
    assert not out[:, :, 5].any()
    exact = (x.detach().double() for x in (q, k, v))
    want, _ = masked_attention(*exact, pattern.mask(70) & (bias > -torch.inf))
    assert_close(out, want, rtol=TOLERANCE[dtype])


@pytest.mark.parametrize(("impl", "dtype"), EVERY)
def test_padding_sends_no_gradient(impl, dtype):
    """A query without keys has zero output and zero gradient everywhere."""
    needs(impl, dtype)
    q, k, v = inputs(100, dtype=dtype)
    key_mask = torch.ones(2, 100, dtype=torch.bool)
    key_mask[:, :30] = False
    out = foveal.attend(q, k, v, P.SlidingWindow(8), key_mask=key_mask, impl=impl)
    assert not out[:, :, :30].any()
    d_q, d_k, _ = torch.autograd.grad(out.square().sum(), (q, k, v))
    assert not d_q[:, :, :30].any()
    assert not d_k[:, :, :30].any()


@pytest.mark.parametrize("impl", ["tiled", "native", "dense", "reference"])
def test_dropout_is_unbiased_and_its_gradient_matches(impl):
    """The mean over many draws is the output without dropout; gradients use the same draw."""
    dtype = torch.float32 if impl == "native" else torch.float64
    needs(impl, dtype)
    torch.manual_seed(0)
    q, k, v = inputs(40, dim_v=16, dtype=dtype)
    pattern = P.SlidingWindow(12)
    exact = foveal.attend(q, k, v, pattern)
    draws = torch.stack(
        [foveal.attend(q, k, v, pattern, dropout_p=0.3, impl=impl) for _ in range(400)]
    )
    assert (draws.mean(0) - exact).abs().max() < 0.25
    assert (draws[0] - draws[1]).abs().max() > 0.01

    def call(value):
        torch.manual_seed(3)
        return foveal.attend(q, k, value, pattern, dropout_p=0.3, impl=impl)

    # the output is linear in v, so the gradient must reproduce it exactly
    (grad,) = torch.autograd.grad(call(v).sum(), v)
    rtol = 1e-4 if dtype == torch.float32 else 1e-9
    assert_close((grad * v).sum(), call(v).sum(), rtol=rtol)


@pytest.mark.parametrize("impl", ["tiled", "native"])
def test_results_are_reproducible(impl):
    """Two runs give the same bits, gradients included."""
    needs(impl)
    q, k, v = inputs(300, dtype=torch.float32)
    pattern = P.TextImage(44, P.Neighborhood(16, 5, causal="raster"))
    runs = []
    for _ in range(2):
        out = foveal.attend(q, k, v, pattern, impl=impl)
        runs.append([out, *torch.autograd.grad(out.square().sum(), (q, k, v))])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_empty_sequence_and_batch():
    """No tokens or no sequences give empty results."""
    for batch, length in ((2, 0), (0, 10)):
        q, k, v = inputs(length, batch=batch)
        for impl in ("tiled", "reference", None):
            out = foveal.attend(q, k, v, P.SlidingWindow(4), impl=impl)
            assert out.shape == (batch, 4, length, 24)


@pytest.mark.parametrize("impl", ["tiled", "native", "dense", None])
def test_compiles_to_one_graph_and_exports(impl):
    """fullgraph compilation, and export with dynamic batch and length, give the same numbers."""
    needs(impl)

    class Layer(torch.nn.Module):
        def forward(self, x):
            q, k, v = (t.unflatten(-1, (4, 8)).transpose(1, 2) for t in x.chunk(3, -1))
            return foveal.attend(q, k, v, P.SlidingWindow(9), impl=impl)

    layer, x = Layer(), torch.randn(2, 100, 96, requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    (want,) = torch.autograd.grad(layer(x).square().sum(), x)
    (got,) = torch.autograd.grad(compiled(x).square().sum(), x)
    assert_close(got, want, rtol=1e-5)
    dims = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("length")},)
    exported = torch.export.export(layer, (x.detach(),), dynamic_shapes=dims).module()
    other = torch.randn(3, 77, 96)
    assert_close(exported(other), layer(other), rtol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert compiled(x).dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # of torch 2.14's own
@pytest.mark.parametrize("impl", ["tiled", "native"])
def test_operator_is_well_formed(impl):
    """torch.library's own checks of schema, fake kernel and autograd registration."""
    from foveal.ops.spec import describe

    needs(impl)

    q, k, v = inputs(70, dtype=torch.float32)
    options = (*describe(P.SlidingWindow(9)), 0.25, 0.0, 0.0, True)
    args = (q, k, v, *6 * (None,), *options)
    torch.library.opcheck(getattr(torch.ops.foveal, f"{impl}_forward").default, args)


@pytest.mark.parametrize("impl", ["tiled", "native"])
def test_gradients_lie_as_their_stand_ins(impl):
    """A bias of transposed tables (T5, Swin) trains in a graph, which relies on the strides."""
    from foveal.ops.spec import describe

    needs(impl)
    q, k, v = inputs(70, dtype=torch.float32)
    bias = torch.randn(70, 70, 4).permute(2, 0, 1)[None]
    pattern = (*describe(P.SlidingWindow(9)), 0.25, 0.0, 0.0)
    forward = getattr(torch.ops.foveal, f"{impl}_forward").default
    backward = getattr(torch.ops.foveal, f"{impl}_backward").default
    given = [x.detach() for x in (q, k, v)] + [bias] + 5 * [None]
    out, lse = forward(*given, *pattern, True)
    args = (torch.ones_like(out), torch.zeros_like(lse), *given, out, lse, *pattern)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = [mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for x in args]
        expected = backward(*fake)
    for real, stand_in in zip(backward(*args), expected, strict=True):
        assert (real.shape, real.stride()) == (stand_in.shape, stand_in.stride())


def test_flex_cross_check():
    """FlexAttention with the analytic block mask, an independent implementation, agrees."""
    q, k, v = (x.detach() for x in inputs(150, dtype=torch.float32, dim_v=16))
    for pattern in (P.SlidingWindow(20), P.Halo((10, 15), 4, 3)):
        out, lse = foveal.attend(q, k, v, pattern, impl="flex", return_lse=True)
        want, want_lse = masked_attention(q, k, v, pattern.mask(150))
        assert_close(out, want, rtol=2e-5)
        assert_close(lse, want_lse, rtol=2e-5)
    with pytest.raises(ValueError, match=r"flex.*backward.*tiled"):
        foveal.attend(q.requires_grad_(), k, v, P.SlidingWindow(20), impl="flex")


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"pattern": "window"}, TypeError, "Pattern"),
        ({"impl": "fast"}, ValueError, "fast"),
        ({"dropout_p": 1.5}, ValueError, "1.5"),
        ({"q": torch.zeros(2, 6, 50, 16)}, ValueError, "multiple"),
        ({"k": torch.zeros(2, 4, 50, 8)}, ValueError, "head_dim"),
        ({"v": torch.zeros(1, 4, 50, 16)}, ValueError, "batch"),
        ({"v": torch.zeros(2, 4, 49, 16)}, ValueError, "length"),
        ({"q": torch.zeros(2, 50, 16)}, ValueError, "head_dim"),
        ({"q": torch.zeros(2, 4, 50, 16, dtype=torch.float64)}, ValueError, "float64"),
        ({"key_mask": torch.ones(2, 50)}, ValueError, "bool"),
        ({"key_mask": torch.ones(2, 51, dtype=torch.bool)}, ValueError, "51"),
        ({"bias": torch.ones(3, 50)}, ValueError, "bias"),
        ({"pattern": P.Axial(7)}, ValueError, "49"),
        ({"bias": torch.ones(50, 50).to_sparse()}, ValueError, "bias .* dense"),
        (
            {"v": torch.zeros(2, 4, 50, 16).to_sparse()},
            ValueError,
            "v must be a dense tensor, .*sparse",
        ),
        (
            {"q": torch.zeros(2, 4, 50, 16).to_sparse(3)},
            ValueError,
            "q must be a dense tensor, .*sparse",
        ),
        ({"impl": "dense", "return_lse": True}, ValueError, "tiled"),
    ],
)
def test_bad_arguments_are_named(change, error, words):
    """A wrong argument raises at the door, with its name or value and what was expected."""
    given_call = {name: torch.zeros(2, 4, 50, 16) for name in "qkv"}
    given_call |= {"pattern": P.SlidingWindow(4)} | change
    q, k, v, pattern = (given_call.pop(name) for name in ("q", "k", "v", "pattern"))
    with pytest.raises(error, match=words):
        foveal.attend(q, k, v, pattern, **given_call)


@pytest.mark.usefixtures("unforced")
def test_explain_names_the_choice():
    """explain() gives the implementation that attend() takes, the reason and the alternatives."""
    long = foveal.explain(P.SlidingWindow(256), 8192)
    assert long.impl == ("tiled" if native.why_not("cpu", torch.float32) else "native")
    assert foveal.explain(P.SlidingWindow(256), 8192, dtype=torch.float64).impl == "tiled"
    assert long.pairs == P.SlidingWindow(256).num_pairs(8192)
    assert foveal.explain(P.SlidingWindow(8), 32).impl == "dense"
    slow = long.impl == "tiled" or build.level() == "generic"  # the products of SDPA are faster
    assert foveal.explain(P.Full(), 8192).impl == ("dense" if slow else "native")
    assert foveal.explain(P.Full(), 8192, dtype=torch.float64).impl == "dense"
    assert "dense" in str(long)
    assert "visited" in str(long)


def test_sizes_may_be_symbols():
    """A pattern built from the input's own height and width exports and compiles once."""

    class Layer(torch.nn.Module):
        def forward(self, x):
            height, width = x.shape[-2:]
            q = x.flatten(2).mT[:, None]
            return foveal.attend(q, q, q, P.Halo((height, width), 4, 2))

    dims = ({2: torch.export.Dim("height"), 3: torch.export.Dim("width")},)
    layer = Layer()
    exported = torch.export.export(
        layer, (torch.randn(1, 8, 16, 16),), dynamic_shapes=dims
    ).module()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for size in ((16, 16), (9, 13)):
        x = torch.randn(1, 8, *size)
        assert_close(exported(x), layer(x), rtol=1e-5)
        assert_close(compiled(x), layer(x), rtol=1e-5)
