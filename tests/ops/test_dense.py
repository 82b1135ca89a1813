"""Dense attention: precision, keys that nobody reads, rows without keys, and memory."""

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

import foveal
from foveal import patterns as P
from foveal.ops import dense, masks, native
from foveal.ops.work import work_of
from foveal.testing import assert_close, dense_attention

HALVES = [torch.float16, torch.bfloat16]


def formula(q, k, v, allowed, bias=0.0, scale=None):
    """Softmax attention in float64, by hand."""
    q, k, v = (x.detach().double() for x in (q, k, v))
    logits = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale) + bias
    weights = logits.masked_fill(~allowed, -math.inf).softmax(-1)
    return weights @ v


def error(got, want):
    return float((got.detach().double() - want.detach()).abs().max())


def qkv(length, dtype, size=1.0, heads=2):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, heads, length, 16) for _ in "qkv")
    return (q * size).to(dtype), (k * size).to(dtype), v.to(dtype)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("size", [1.0, 3.0])
@pytest.mark.parametrize(
    "pattern", [P.Full(), P.Full(causal=True), P.SlidingWindow(9), P.Strided(7)], ids=str
)
@pytest.mark.parametrize("length", [7, 64, 200])
def test_half_precision_is_as_exact_as_sdpa(length, pattern, size, dtype):
    """The short path rounds no logits: attend() is as near to float64 as torch's own kernel."""
    q, k, v = qkv(length, dtype, size)
    allowed = pattern.mask(length)
    want = formula(q, k, v, allowed)
    theirs = error(scaled_dot_product_attention(q, k, v, attn_mask=allowed), want)
    for impl, factor in ((None, 2.0), ("dense", 1.05)):
        ours = error(foveal.attend(q, k, v, pattern, impl=impl), want)
        assert ours <= factor * theirs + 1e-4


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("bias_dtype", [torch.float64, torch.float32, *HALVES])
@pytest.mark.parametrize("size", [1.0, 300.0, 3e4, 1e5, 1e30])
@pytest.mark.parametrize("impl", ["dense", "reference"])
def test_a_bias_of_any_magnitude(impl, size, bias_dtype, dtype):
    """A bias that the inputs' precision cannot hold neither overflows nor loses its digits."""
    q, k, v = qkv(20, dtype)
    bias = torch.full((20, 20), -size, dtype=torch.float64)
    bias[:, ::2] = torch.arange(10) / 10  # ordinary differences beside large ones
    bias = bias.clamp(min=torch.finfo(bias_dtype).min).to(bias_dtype)
    out = foveal.attend(q, k, v, P.Full(), bias=bias, impl=impl)
    want = formula(q, k, v, torch.ones(20, 20, dtype=torch.bool), bias.double())
    assert error(out, want) < 2 * torch.finfo(dtype).eps * float(want.abs().max())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES])
@pytest.mark.parametrize("bias_dtype", [torch.float64, torch.float32, *HALVES])
@pytest.mark.parametrize("impl", ["dense", "reference"])
def test_the_lowest_number_is_a_number(impl, bias_dtype, dtype):
    """A row at finfo.min is the softmax of equal logits; a row at -inf has no key."""
    q, k, v = qkv(12, dtype)
    bias = torch.zeros(12, 12, dtype=bias_dtype)
    bias[3] = torch.finfo(bias_dtype).min
    bias[5] = -torch.inf
    bias[7, 2:] = torch.finfo(bias_dtype).min
    out = foveal.attend(q, k, v, P.Full(), bias=bias, impl=impl).double()
    assert not out[:, :, 5].any()
    tolerance = 4 * torch.finfo(dtype).eps
    if bias_dtype != torch.float16:  # whose lowest number leaves logits their digits
        assert error(out[:, :, 3], v.double().mean(2)) < tolerance
    allowed = torch.ones(12, 12, dtype=torch.bool)
    allowed[7, 2:] = False
    want = formula(q, k, v, allowed)
    assert error(out[:, :, 7], want[:, :, 7]) < 4 * tolerance


POISON = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("poison", POISON)
@pytest.mark.parametrize("impl", ["dense", "reference", None])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_padding_holds_reaches_nothing(dtype, biased, impl, poison):
    """NaN and infinities behind a key_mask leak into no output and no gradient."""
    q, k, v = qkv(40, dtype)
    key_mask = torch.arange(40) < torch.tensor([[40], [25]])
    bias = torch.randn(40, 40) if biased else None
    results = []
    for hidden in (0.0, poison):
        filled = (x.masked_fill(~key_mask[:, None, :, None], hidden) for x in (k, v))
        given = [x.clone().requires_grad_() for x in (q, *filled)]
        out = foveal.attend(*given, P.Full(), key_mask=key_mask, bias=bias, impl=impl)
        results.append([out, *torch.autograd.grad(out.float().square().sum(), given)])
    for clean, poisoned in zip(*results, strict=True):
        assert torch.equal(clean, poisoned)
    assert not results[1][2][1, :, 25:].any()


@pytest.mark.parametrize("poison", POISON)
@pytest.mark.parametrize("impl", ["dense", "reference"])
@pytest.mark.parametrize(
    ("pattern", "queries", "read"),
    [
        (P.BlockSparse(torch.tensor([[1, 0], [1, 0]]), 8), 16, 8),
        (P.SlidingWindow(3), 4, 4),  # queries of the first tokens alone
        (P.Full(causal=True), 5, 5),
        (P.Blocks(4), 8, 8),
    ],
    ids=str,
)
def test_keys_that_the_pattern_hides_reach_nothing(pattern, queries, read, impl, poison):
    """NaN in keys that no query of the pattern reads leaks into no output and no gradient."""
    q, k, v = qkv(16, torch.float32)
    k[:, :, read:] = poison
    v[:, :, read:] = poison
    given = [x.requires_grad_() for x in (q[:, :, :queries].clone(), k, v)]
    out = foveal.attend(*given, pattern, impl=impl)
    assert torch.isfinite(out).all()
    grads = torch.autograd.grad(out.square().sum(), given)
    assert all(torch.isfinite(grad).all() for grad in grads)
    assert not grads[1][:, :, read:].any()


@pytest.mark.parametrize("impl", ["dense", "reference", "tiled", "native", None])
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (4, 2), (4, 1)])
def test_keys_that_one_head_hides_reach_nothing(heads, kv_heads, impl):
    """Where heads differ: NaN in keys of a head that it does not read, but others do."""
    if impl == "native" and not native.ready():
        pytest.skip("no kernel here")
    layout = torch.ones(heads, 4, 4, dtype=torch.bool)
    layout[: heads // kv_heads, :, 3] = False  # the queries of the first head of keys
    layout[0, 0, 1] = False
    pattern = P.BlockSparse(layout, 5)
    q, k, v = torch.randn(2, heads, 20, 8), *torch.randn(2, 2, kv_heads, 20, 8)
    key_mask = torch.rand(2, 20) < 0.8
    results = []
    for poison in (0.0, math.nan):
        for x in (k, v):
            x[:, 0, 15:] = poison
        given = [x.clone().requires_grad_() for x in (q, k, v)]
        for mask in (None, key_mask):
            out = foveal.attend(*given, pattern, key_mask=mask, impl=impl)
            results.append([out, *torch.autograd.grad(out.square().sum(), given)])
    for clean, poisoned in zip(results[:2], results[2:], strict=True):
        for one, other in zip(clean, poisoned, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize(
    "options",
    [
        {"key_mask": True},
        {"bias": (1, 1, 1, 96)},
        {"bias": (1, 1, 96, 1)},
        {"dropout_p": 1e-6},
        {},
    ],
)
@pytest.mark.parametrize("pattern", [P.Full(), P.Full(causal=True), P.SlidingWindow(9)], ids=str)
def test_queries_in_turns_give_the_same(pattern, options, monkeypatch):
    """Where a mask would be many numbers queries take turns; results and gradients stay."""
    torch.manual_seed(0)
    given = [torch.randn(2, 2, 96, 8, requires_grad=True) for _ in "qkv"]
    options = dict(options)
    if "key_mask" in options:
        options["key_mask"] = torch.rand(2, 96) > 0.3
    if "bias" in options:
        options["bias"] = torch.randn(options["bias"], requires_grad=True)
        given.append(options["bias"])
    results = []
    for most in (1 << 24, 1000):
        monkeypatch.setattr(dense, "MOST_PAIRS", most)
        out = foveal.attend(*given[:3], pattern, impl="dense", **options)
        results.append([out, *torch.autograd.grad(out.square().sum(), given)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_queries_in_turns_under_transforms(monkeypatch):
    """torch.func, which knows no checkpoints, differentiates the turns as it does the whole."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 40, 8, dtype=torch.float64)
    key_mask = torch.rand(1, 40) > 0.3

    def loss(q, impl="dense"):
        out = foveal.attend(q, k, v, P.SlidingWindow(9), key_mask=key_mask, impl=impl)
        return out.sin().sum()

    monkeypatch.setattr(dense, "MOST_PAIRS", 300)
    want = torch.func.grad(loss)(q, "reference")
    torch.testing.assert_close(torch.func.grad(loss)(q), want)
    losses = torch.func.vmap(torch.func.grad(loss))(torch.stack((q, q)))
    torch.testing.assert_close(losses, torch.stack((want, want)))


def test_masks_that_are_kept_are_bounded():
    """However many patterns come, their masks take no more than the limit."""
    masks.mask_of.cache_clear()
    for window in range(1, 35):
        masks.mask_of(P.SlidingWindow(window), 1024, 1024, torch.device("cpu"), torch.float32)
    assert 0 < masks.mask_of.cache_info()[1] <= 128 << 20
    masks.mask_of.cache_clear()


def test_masks_of_inference_and_transforms_serve_training():
    """What is kept from inference_mode, a transform or fake tensors is an ordinary tensor."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    pattern = P.SlidingWindow(5)
    q, k, v = qkv(33, torch.float32)
    masks.mask_of.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True):
        foveal.attend(*(torch.empty(1, 1, 33, 4) for _ in "qkv"), pattern, impl="dense")
    with torch.inference_mode():
        foveal.attend(q, k, v, pattern, impl="dense")
    out = foveal.attend(q.requires_grad_(), k, v, pattern, impl="dense")
    assert torch.isfinite(torch.autograd.grad(out.sum(), q)[0]).all()
    masks.mask_of.cache_clear()

    def loss(x):
        return foveal.attend(x, k, v, pattern, impl="dense").sum()

    torch.func.grad(loss)(q.detach())
    out = foveal.attend(q, k, v, pattern, impl="dense")
    assert torch.isfinite(torch.autograd.grad(out.sum(), q)[0]).all()


@pytest.mark.parametrize("impl", ["reference", "dense", "tiled", "native", None])
@pytest.mark.parametrize("length", [30, 200])
@pytest.mark.parametrize("shape", [(), (1,), (2, 1, 1), (1, 2, 1, 1)])
def test_a_learned_scale_gets_its_gradient(shape, length, impl):
    """A temperature, one or one a head, is a parameter like any other in every implementation."""
    if impl == "native" and foveal.ops.native.why_not("cpu", torch.float32):
        pytest.skip("no native kernel here")
    q, k, v = qkv(length, torch.float32)
    pattern = P.SlidingWindow(7)
    scale = torch.full(shape, 0.3, requires_grad=True)
    out = foveal.attend(q, k, v, pattern, scale=scale, impl=impl)
    (got,) = torch.autograd.grad(out.square().sum(), scale)
    exact = torch.full(shape, 0.3, dtype=torch.float64, requires_grad=True)
    plain = q.double() * exact
    logits = (plain @ k.double().mT).masked_fill(~pattern.mask(length), -math.inf)
    want = logits.softmax(-1) @ v.double()
    (expected,) = torch.autograd.grad(want.square().sum(), exact)
    assert error(out, want) < 1e-4
    torch.testing.assert_close(got.double(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_learned_scale_compiles(compiled):
    """The gradient arrives from a compiled call as well."""
    q, k, v = qkv(40, torch.float32)
    scale = torch.nn.Parameter(torch.tensor(0.5))

    def call():
        return foveal.attend(q, k, v, P.SlidingWindow(5), scale=scale)

    run = torch.compile(call, backend="aot_eager", fullgraph=True) if compiled else call
    assert torch.autograd.grad(run().sum(), scale)[0].isfinite()


@pytest.mark.parametrize("scale", [2, 0.5, 1.0])
def test_numbers_of_every_kind_are_scales(scale):
    """Ints, NumPy's numbers and tensors without gradients mean what floats mean."""
    numpy = pytest.importorskip("numpy")
    q, k, v = qkv(20, torch.float32)
    want = foveal.attend(q, k, v, P.Full(), scale=float(scale))
    for one in (scale, numpy.float32(scale), numpy.float64(scale), torch.tensor(scale)):
        torch.testing.assert_close(foveal.attend(q, k, v, P.Full(), scale=one), want)


@pytest.mark.parametrize(
    ("change", "error_kind", "words"),
    [
        ({"scale": "0.5"}, ValueError, "scale must be a number"),
        ({"scale": math.nan}, ValueError, "scale must be a number"),
        ({"scale": math.inf}, ValueError, "scale must be a number"),
        ({"scale": True}, ValueError, "scale must be a number"),
        ({"scale": [0.5]}, ValueError, "scale must be a number"),
        ({"scale": torch.ones(3)}, ValueError, "scale must be a number, or a tensor"),
        ({"scale": torch.tensor(True)}, ValueError, "scale must be a number, or a tensor"),
        ({"dropout_p": torch.tensor(0.1, requires_grad=True)}, TypeError, "dropout_p"),
        ({"dropout_p": "0.1"}, ValueError, "dropout_p"),
        ({"dropout_p": True}, ValueError, "dropout_p"),
        ({"dropout_p": math.nan}, ValueError, "dropout_p"),
        ({"dropout_p": 1.0}, ValueError, "dropout_p"),
        ({"return_lse": "false"}, ValueError, "return_lse must be True or False"),
        ({"return_lse": 1}, ValueError, "return_lse must be True or False"),
        ({"key_mask": torch.ones(2, 8)}, ValueError, "key_mask must be bool"),
        ({"key_mask": torch.ones(2, 8).long()}, ValueError, "key_mask must be bool"),
        ({"key_mask": [[True] * 8] * 2}, TypeError, "key_mask must be a bool tensor"),
        ({"bias": [[0.0] * 8] * 8}, TypeError, "bias must be a tensor"),
        ({"bias": torch.ones(8, 8, dtype=torch.bool)}, ValueError, "bias must be floating"),
        ({"bias": torch.ones(8, 8).long()}, ValueError, "bias must be floating"),
        ({"bias": torch.ones(1, 1, 1, 8, 8)}, ValueError, "bias"),
        ({"q": [[1.0]]}, TypeError, "q, k and v must be tensors"),
        ({"q": torch.ones(2, 2, 8, 4).long()}, ValueError, "floating dtype"),
        ({"pattern": "Full"}, TypeError, "Pattern"),
        ({"impl": "tilde"}, ValueError, "did you mean 'tiled'"),
        ({"impl": 3}, ValueError, "impl must be one of"),
    ],
)
def test_arguments_of_a_wrong_kind_are_named(change, error_kind, words):
    """What would count as something else, or lose its gradient, is refused by name."""
    options = {name: torch.ones(2, 2, 8, 4) for name in "qkv"} | {"pattern": P.Full()} | change
    tensors = [options.pop(name) for name in ("q", "k", "v", "pattern")]
    with pytest.raises(error_kind, match=words):
        foveal.attend(*tensors, **options)


@pytest.mark.parametrize("dtype", HALVES)
def test_autocast_keeps_our_arithmetic(dtype):
    """Under autocast the products that we widen are not narrowed again."""
    q, k, v = qkv(64, torch.float32, 3.0)
    with torch.autocast("cpu", dtype):
        out = foveal.attend(q, k, v, P.SlidingWindow(20), impl="dense")
    halves = [x.to(dtype) for x in (q, k, v)]
    assert out.dtype == dtype
    assert torch.equal(out, foveal.attend(*halves, P.SlidingWindow(20), impl="dense"))


@pytest.mark.parametrize("length", [9, 11, 13])
def test_a_window_bias_where_an_image_ends_within_a_row(length):
    """Relative positions of the first pixels of an image: values and gradients as in dense."""
    from foveal.ops import WindowBias

    pattern = P.Halo((4, 4), 2, 1)
    torch.manual_seed(0)
    given = [torch.randn(1, 2, length, n, requires_grad=True) for n in (8, 8, 8, 4, 4)]
    results = []
    for impl in ("reference", "dense", "tiled", None):
        out = foveal.attend(*given[:3], pattern, bias=WindowBias(*given[3:]), impl=impl)
        results.append([out, *torch.autograd.grad(out.square().sum(), given)])
    for other in results[1:]:
        for one, want in zip(other, results[0], strict=True):
            torch.testing.assert_close(one, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("impl", ["tiled", "native"])
def test_a_window_bias_in_a_graph_where_an_image_ends_within_a_row(impl):
    """A compiled call knows as well that such tiles differ in shape, whatever its length."""
    from foveal.ops import WindowBias

    if impl == "native" and not native.ready():
        pytest.skip("no kernel here")
    pattern = P.Halo((8, 8), 4, 2)

    def attention(q, k, v, rows, columns, impl=impl):
        return foveal.attend(q, k, v, pattern, bias=WindowBias(rows, columns), impl=impl)

    compiled = torch.compile(attention, fullgraph=True, backend="eager", dynamic=True)
    for length in (37, 40, 63):
        given = [torch.randn(1, 2, length, n) for n in (8, 8, 8, 8, 8)]
        want = attention(*given, impl="reference")
        torch.testing.assert_close(compiled(*given), want, rtol=1e-4, atol=1e-5)


def test_what_is_written_out():
    """Broadcast masks and biases count as they stand; fused kernels hold no scores."""
    q = torch.zeros(2, 4, 100, 8)

    def count(pattern, bias=None, key_mask=None, dropout=0.0):
        mask = None if key_mask is None else torch.ones(2, 100, dtype=torch.bool)
        work = work_of(q, q, q, pattern, bias, mask, dropout, False)
        return dense.written_out(work)

    assert count(P.Full()) == count(P.Full(causal=True)) == 1
    assert count(P.Full(), key_mask=True) == 2 * 100
    assert count(P.Full(causal=True), key_mask=True) == 2 * 100 * 100
    assert count(P.Full(), bias=torch.zeros(1, 4, 1, 100)) == 4 * 100
    assert count(P.SlidingWindow(3), bias=torch.zeros(1, 1, 1, 100)) == 100 * 100
    assert count(P.Full(), dropout=0.1) == 8 * 100 * 100


@pytest.mark.parametrize("scale", [0.0, -0.7, -2.0])
@pytest.mark.parametrize("length", [1, 40, 153, 600])
def test_causal_attention_with_a_scale_that_is_not_positive(scale, length):
    """torch's causal kernel multiplies the -inf of the future with the scale, and gives NaN."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, length, 8, requires_grad=True) for _ in range(3))
    got = foveal.attend(q, k, v, P.Full(causal=True), scale=scale, impl="dense")
    want, _ = dense_attention(q, k, v, P.Full(causal=True), scale=scale)
    assert_close(got, want, rtol=1e-5)
    grads = (torch.autograd.grad(x.double().square().sum(), (q, k, v)) for x in (got, want))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("impl", ["reference", "tiled", "dense", "native"])
@pytest.mark.parametrize(
    ("pattern", "length"),
    [
        (P.BlockSparse(torch.tensor([[0, 1, 0], [0, 1, 1], [0, 0, 1]]), 16), 48),
        (P.SlidingWindow(9, causal=False) & P.BlockSparse(1 - torch.eye(5).long(), 16), 77),
        (P.Fixed(27, 2, causal=False) & P.BlockSparse(torch.eye(7).flip(0).long(), 16), 109),
    ],
)
def test_keys_that_no_query_reads_may_hold_anything(pattern, length, impl):
    """Also where a short sequence is computed as one tile that holds it whole."""
    if impl == "native" and (reason := native.why_not("cpu", torch.float32)):
        pytest.skip(reason)
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, length, 8) for _ in range(3))
    unread = ~pattern.mask(length).any(0)
    want = foveal.attend(q, k, v, pattern, impl=impl)
    k, v = (x.masked_fill(unread[:, None], torch.nan).requires_grad_() for x in (k, v))
    got = foveal.attend(q, k, v, pattern, impl=impl)
    assert torch.equal(got, want)
    for grad in torch.autograd.grad(got.square().sum(), (k, v)):
        assert torch.isfinite(grad).all()


@pytest.mark.parametrize("queries", ["fine", "coarse"])
def test_the_definition_of_a_pyramid_reads_no_masked_token(queries):
    """NaN behind a key_mask reaches no mean of keys."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, 45, 8) for _ in range(3))
    real = torch.rand(2, 45) < 0.7
    pattern = P.Pyramid(4, causal=True, queries=queries)
    want = foveal.attend(q, k, v, pattern, key_mask=real, impl="reference")
    k, v = (x.masked_fill(~real[:, None, :, None], torch.nan) for x in (k, v))
    assert torch.equal(foveal.attend(q, k, v, pattern, key_mask=real, impl="reference"), want)


@pytest.mark.parametrize("impl", ["reference", "tiled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_at_the_lowest_number_pass_the_gradient_of_a_mean(impl, dtype):
    """Of the log-sum-exp too, whose logarithm their rounding hides."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 1, 6, 4, requires_grad=True) for _ in range(3))
    bias = torch.full((1, 1, 6, 6), torch.finfo(dtype).min, dtype=dtype, requires_grad=True)
    out, lse = foveal.attend(q, k, v, P.Full(), bias=bias, impl=impl, return_lse=True)
    (grad,) = torch.autograd.grad(lse.sum() + 0 * out.sum(), bias)
    torch.testing.assert_close(grad, torch.full_like(grad, 1 / 6))
