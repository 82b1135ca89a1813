"""Derivatives beyond the first backward pass: the value, or one clear error; never zero."""

import pytest
import torch
from torch.autograd import forward_ad

import foveal
from foveal import patterns as P
from foveal.layers.feed_forward import FeedForward
from foveal.layers.reversible import ReversibleSequence
from foveal.ops import PyramidBias, native
from foveal.ops.bias import WindowBias
from foveal.ops.fused import fused_attention
from foveal.ops.pooling import pool_keys
from foveal.testing import assert_close, dense_attention

IMPLS = ["tiled", "native", None]
LAYOUT = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 0]])

PATTERNS = [
    (P.SlidingWindow(8), 90),
    (P.Neighborhood((7, 9), 3), 63),
    (P.BlockSparse(LAYOUT, 25), 70),
    (P.Blocks(16) | P.Strided(30), 70),
    (P.Full(causal=True), 80),
]


def inputs(length, heads=2, kv_heads=1, dim=4, dtype=torch.float64):
    g = torch.Generator().manual_seed(length)

    def draw(count):
        return torch.randn(1, count, length, dim, generator=g, dtype=dtype)

    return draw(heads), draw(kv_heads), draw(kv_heads)


def dtype_of(impl):
    if impl == "native" and native.why_not("cpu", torch.float32) is not None:
        pytest.skip("no native kernel here")
    return torch.float32 if impl == "native" else torch.float64


def dense(pattern, bias=None, key_mask=None):
    def attention(q, k, v):
        mask = pattern.mask(q.shape[2], k.shape[2])
        out, _ = dense_attention(q, k, v, mask, bias, key_mask)
        return out.to(q.dtype)

    return attention


def sparse(pattern, impl, **options):
    return lambda q, k, v: foveal.attend(q, k, v, pattern, impl=impl, **options)


def penalty(attention, *tensors):
    """Gradients of the squared gradient: what a gradient penalty sends to the inputs."""
    tensors = [x.clone().requires_grad_() for x in tensors]
    first = torch.autograd.grad(attention(*tensors).pow(2).sum(), tensors, create_graph=True)
    return torch.autograd.grad(sum(one.pow(2).sum() for one in first), tensors)


@pytest.mark.parametrize("impl", ["tiled", "native"])
@pytest.mark.parametrize(("pattern", "length"), PATTERNS, ids=repr)
def test_second_order(pattern, length, impl):
    """The gradient of a gradient, of all three inputs."""
    qkv = inputs(length, dtype=dtype_of(impl))
    want = penalty(dense(pattern), *(x.double() for x in qkv))
    for got, right in zip(penalty(sparse(pattern, impl), *qkv), want, strict=True):
        assert_close(got, right, rtol=1e-4)


@pytest.mark.parametrize("impl", ["tiled", "native"])
def test_second_order_where_all_three_are_one_tensor(impl):
    """q, k and v may be the same tensor, whose gradient is the sum of three."""
    x = inputs(70, 2, 2, dtype=dtype_of(impl))[0]
    pattern = P.SlidingWindow(5, causal=False)
    (got,) = penalty(lambda x: sparse(pattern, impl)(x, x, x), x)
    (want,) = penalty(lambda x: dense(pattern)(x, x, x), x.double())
    assert_close(got, want, rtol=1e-4)


def test_second_order_through_biases_and_masks():
    """A learned bias, a WindowBias, a key mask and the log-sum-exp take part."""
    q, k, v = inputs(48, 2, 2)
    pattern, g = P.Halo((6, 8), 3, 1), torch.Generator().manual_seed(0)
    rows, columns = (torch.randn(1, 2, 48, 5, generator=g, dtype=q.dtype) for _ in range(2))
    key_mask = torch.arange(48)[None] < 40

    def windowed(q, k, v, rows, columns):
        bias = WindowBias(rows, columns)
        return foveal.attend(q, k, v, pattern, bias=bias, key_mask=key_mask, impl="tiled")

    def expanded(q, k, v, rows, columns):
        return dense(pattern, WindowBias(rows, columns).dense(pattern), key_mask)(q, k, v)

    for got, want in zip(
        penalty(windowed, q, k, v, rows, columns),
        penalty(expanded, q, k, v, rows, columns),
        strict=True,
    ):
        assert_close(got, want, rtol=1e-6)

    bias = torch.randn(2, 1, 48, generator=g, dtype=q.dtype)
    for got, want in zip(
        penalty(lambda q, k, v, b: sparse(pattern, "tiled", bias=b)(q, k, v), q, k, v, bias),
        penalty(lambda q, k, v, b: dense(pattern, b)(q, k, v), q, k, v, bias),
        strict=True,
    ):
        assert_close(got, want, rtol=1e-6)


def test_gradgradcheck():
    """torch's own numerical check of first, second and forward derivatives."""
    q, k, v = (x.requires_grad_() for x in inputs(7, 2, 1, 2))
    pattern = P.SlidingWindow(3) | P.Blocks(4)

    def attention(q, k, v):
        return foveal.attend(q, k, v, pattern, impl="tiled", return_lse=True)

    assert torch.autograd.gradcheck(attention, (q, k, v), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(attention, (q, k, v), check_fwd_over_rev=True)


@pytest.mark.parametrize("impl", IMPLS)
def test_forward_mode(impl):
    """torch.func.jvp and dual numbers give the directional derivative."""
    qkv = inputs(90, dtype=dtype_of(impl))
    ways = tuple(torch.randn_like(x) for x in qkv)
    want = torch.func.jvp(dense(P.SlidingWindow(8)), qkv, ways)
    attention = sparse(P.SlidingWindow(8), impl)
    for got, right in zip(torch.func.jvp(attention, qkv, ways), want, strict=True):
        assert_close(got, right, rtol=1e-5)
    with forward_ad.dual_level():
        duals = (forward_ad.make_dual(x, way) for x, way in zip(qkv, ways, strict=True))
        _, got = forward_ad.unpack_dual(attention(*duals))
    assert_close(got, want[1], rtol=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
def test_torch_func(impl):
    """grad, per-sample gradients, jacobians and Hessians of torch.func."""
    q, k, v = inputs(70, dtype=dtype_of(impl))
    q, k, v = q[..., :20, :], k[..., :20, :], v[..., :20, :]
    pattern = P.SlidingWindow(4)
    ours, theirs = (
        lambda q, f=f: f(q, k.to(q), v.to(q)).pow(2).sum()
        for f in (sparse(pattern, impl), dense(pattern))
    )
    many = torch.stack([q, 2 * q, -q])
    for transform, x in (
        (torch.func.grad, q),
        (lambda f: torch.func.vmap(torch.func.grad(f)), many),
        (torch.func.jacrev, q),
        (torch.func.jacfwd, q),
        (torch.func.hessian, q[:, :, :, :2]),
    ):
        if x.shape[-1] == 2:
            ours, theirs = (lambda q, f=f: f(torch.cat([q, q], -1)) for f in (ours, theirs))
        assert_close(transform(ours)(x), transform(theirs)(x), rtol=1e-4)


@pytest.mark.parametrize("impl", IMPLS)
def test_vmap_and_batched_gradients(impl):
    """vmap over any argument, and gradients of many outputs at once."""
    q, k, v = inputs(66, dtype=dtype_of(impl))
    pattern = P.SlidingWindow(9)
    attention = sparse(pattern, impl)
    many = torch.stack([q, 3 * q])
    got = torch.func.vmap(attention, (0, None, None))(many, k, v)
    assert_close(got, torch.stack([attention(one, k, v) for one in many]), rtol=1e-6)
    small = q[:, :, :6].clone()

    def jacobian(f, **options):
        call = lambda q: f(q, k[:, :, :6], v[:, :, :6])  # noqa: E731
        return torch.autograd.functional.jacobian(call, small, **options)

    for vectorize in (False, True):
        assert_close(jacobian(attention, vectorize=vectorize), jacobian(dense(pattern)), rtol=1e-5)


def test_hessian_products():
    """autograd.functional.hvp and jvp, which differentiate a backward pass."""
    q, k, v = inputs(40)
    way = torch.randn_like(q)
    for name in ("hvp", "vhp"):
        found = [
            getattr(torch.autograd.functional, name)(
                lambda q, f=f: f(q, k, v).sum().pow(2), q, way
            )
            for f in (sparse(P.Blocks(8), "tiled"), dense(P.Blocks(8)))
        ]
        assert_close(found[0][1], found[1][1], rtol=1e-6)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("impl", ["tiled", None])
def test_pyramids(causal, impl):
    """Pooled keys, coarse queries and tables of biases, beside their own definition."""
    pattern, (q, k, v) = P.Pyramid(4, causal=causal), inputs(45, 2, 2)
    table = torch.randn(pattern.bias_size, 2, dtype=q.dtype)
    key_mask = torch.arange(45)[None] < 39

    def run(impl):
        return lambda q, k, v, table: foveal.attend(
            q, k, v, pattern, bias=PyramidBias(table), key_mask=key_mask, impl=impl
        )

    for got, want in zip(
        penalty(run(impl), q, k, v, table), penalty(run("reference"), q, k, v, table), strict=True
    ):
        assert_close(got, want, rtol=1e-6)
    given = (q, k, v, table)
    ways = tuple(torch.randn_like(x) for x in given)
    got, want = (torch.func.jvp(run(one), given, ways) for one in (impl, "reference"))
    assert_close(got[1], want[1], rtol=1e-6)


def test_pooling():
    """Its second derivative, forward mode and vmap are those of a mean."""
    _, k, v = inputs(11)

    def means(k):
        return pool_keys(k, v, None, 3).k.pow(3).sum()

    assert torch.autograd.gradgradcheck(means, (k.requires_grad_(),), check_fwd_over_rev=True)
    many = torch.stack([k.detach(), 2 * k.detach()])
    want = torch.stack([torch.func.grad(means)(one) for one in many])
    assert_close(torch.func.vmap(torch.func.grad(means))(many), want)


@pytest.mark.parametrize("impl", ["dense", None])
@pytest.mark.parametrize(("pattern", "length"), PATTERNS, ids=repr)
def test_second_order_of_dense_attention(pattern, length, impl):
    """torch's fused kernels have no second derivative: theirs is that of plain operations."""
    qkv = inputs(length)
    bias = torch.randn(length, length, dtype=qkv[0].dtype)
    key_mask = torch.arange(length)[None] < length - 7
    given = {"bias": bias, "key_mask": key_mask}
    for options in ({}, given):
        want = penalty(dense(pattern, **options), *qkv)
        for got, right in zip(penalty(sparse(pattern, impl, **options), *qkv), want, strict=True):
            assert_close(got, right, rtol=1e-6)
    want = penalty(lambda x: dense(pattern)(x, x, x), qkv[1])
    assert_close(penalty(lambda x: sparse(pattern, impl)(x, x, x), qkv[1])[0], want[0], rtol=1e-6)


def test_second_order_of_half_precision_on_the_dense_path():
    """The same in float32 products of bfloat16 and float16, to their rounding."""
    for dtype, rtol in ((torch.bfloat16, 3e-2), (torch.float16, 5e-3)):
        qkv = [x.to(dtype) for x in inputs(40)]
        want = penalty(dense(P.SlidingWindow(8)), *(x.double() for x in qkv))
        for got, right in zip(penalty(sparse(P.SlidingWindow(8), None), *qkv), want, strict=True):
            assert got.dtype == dtype
            assert_close(got.double(), right, rtol=rtol)


@pytest.mark.parametrize("impl", ["dense", "tiled"])
def test_dropout_says_what_it_lacks(impl):
    """A second derivative through dropped weights is one clear error, or the value."""
    q, k, v = (x.requires_grad_() for x in inputs(70))
    out = fused_attention(q, k, v, dropout_p=0.5, enable_gqa=True)
    if impl == "tiled":
        out = foveal.attend(q, k, v, P.SlidingWindow(9), dropout_p=0.5, impl="tiled")
        with pytest.raises(RuntimeError, match=r"impl='reference'"):
            torch.autograd.grad(out.sum(), q, create_graph=True)
        return
    (grad,) = torch.autograd.grad(out.sum(), q, create_graph=True)
    assert torch.autograd.grad(grad.pow(2).sum(), k)[0].any()


def test_a_checkpoint_says_what_it_lacks():
    """It gives what was saved only once: one clear error; first derivatives are its own."""
    q, k, v = (x.requires_grad_() for x in inputs(70, 2, 2))

    def run():
        call = sparse(P.SlidingWindow(9), "dense")
        return torch.utils.checkpoint.checkpoint(call, q, k, v, use_reentrant=False).sum()

    (want,) = torch.autograd.grad(dense(P.SlidingWindow(9))(q, k, v).sum(), q)
    assert_close(torch.autograd.grad(run(), q)[0], want, rtol=1e-6)
    with pytest.raises(RuntimeError, match=r"checkpoint has no second .*impl='reference'"):
        torch.autograd.grad(run(), q, create_graph=True)


@pytest.mark.parametrize("pattern", [P.SlidingWindow(9), P.Full(), P.Full(causal=True)], ids=repr)
def test_the_gradient_of_dense_attention_itself_may_be_differentiated(pattern):
    """What ends at the output of fused attention, and what goes on through it, many times."""
    q, k, v = (x.requires_grad_() for x in inputs(30, 2, 2))
    for given in (q, q * 2):  # a leaf, and what was computed
        for _ in range(2):  # the second call is known
            out = foveal.attend(given, k, v, pattern, impl="dense")
            seen = []
            out.register_hook(seen.append)
            (first,) = torch.autograd.grad(out.pow(3).sum(), out, create_graph=True)
            (second,) = torch.autograd.grad(first.sum(), out, retain_graph=True)
            assert_close(second, 6 * out.detach())
            assert len(seen) == 2
            results = []
            for wanted in ([given, out], [given], [given, k, v]):
                first, *_ = torch.autograd.grad(out.pow(2).sum(), wanted, create_graph=True)
                results.append(torch.autograd.grad(first.sum(), (k, v), retain_graph=True))
            for one in results[1:]:
                assert all(torch.equal(a, b) for a, b in zip(one, results[0], strict=True))
            want, _ = dense_attention(given, k, v, pattern.mask(30))
            (first,) = torch.autograd.grad(want.pow(2).sum(), given, create_graph=True)
            second = torch.autograd.grad(first.sum(), (k, v), retain_graph=True)
            for got, right in zip(results[0], second, strict=True):
                assert_close(got, right, rtol=1e-8)
            torch.autograd.grad(out.sum(), (given, k, v))


def layers():
    torch.manual_seed(0)
    pairs = [(FeedForward(6, activation="geglu"), torch.nn.Linear(6, 6)) for _ in range(2)]
    return ReversibleSequence(pairs).double()


def test_reversible_layers():
    """Second derivatives, forward mode and per-sample gradients of a reversible stack."""
    model = layers()
    weights = dict(model.named_parameters())
    x = torch.randn(2, 3, 6, dtype=torch.float64)

    def loss(weights, x):
        return torch.func.functional_call(model, weights, (x,)).pow(2).sum()

    assert torch.autograd.gradgradcheck(lambda x: model(x), (x.clone().requires_grad_(),))
    plain = torch.autograd.grad(loss(weights, x), list(weights.values()))
    found = torch.func.grad(loss)(weights, x)
    for name, want in zip(weights, plain, strict=True):
        assert_close(found[name], want)
    (first,) = torch.autograd.grad(
        loss(weights, y := x.clone().requires_grad_()), y, create_graph=True
    )
    second = torch.autograd.grad(first.pow(2).sum(), list(weights.values()), allow_unused=True)
    assert sum(float(one.norm()) for one in second if one is not None) > 0
    _, got = torch.func.jvp(model, (x,), (torch.ones_like(x),))
    want = torch.autograd.functional.jvp(model, x, torch.ones_like(x))[1]
    assert_close(got, want, rtol=1e-6)


def test_torch_func_on_a_whole_layer():
    """Layers that end in torch's own attention: per-sample gradients and forward mode."""
    torch.manual_seed(0)
    layer = foveal.HaloAttention(dim=8, block_size=4, halo_size=1, dim_head=4, heads=2).double()
    x = torch.randn(2, 8, 8, 8, dtype=torch.float64)
    weights = dict(layer.named_parameters())

    def loss(weights, x):
        return torch.func.functional_call(layer, weights, (x[None],)).pow(2).sum()

    found = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, x)
    for at, one in enumerate(x):
        want = torch.autograd.grad(loss(weights, one), list(weights.values()))
        for name, right in zip(weights, want, strict=True):
            assert_close(found[name][at], right, rtol=1e-6, name=name)


def test_fused_attention_in_plain_operations():
    """Under torch.func torch's attention is its own definition; a way out of the error works."""
    q, k, v = inputs(20, 2, 2)
    mask = P.SlidingWindow(5).mask(20)

    def fused(q):
        return fused_attention(q, k, v, attn_mask=mask).pow(2).sum()

    want = torch.func.hessian(lambda q: dense(P.SlidingWindow(5))(q, k, v).pow(2).sum())(q)
    assert_close(torch.func.hessian(fused)(q), want, rtol=1e-6)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        (got,) = penalty(lambda q: fused_attention(q, k, v, attn_mask=mask), q)
    (want,) = penalty(lambda q: dense(P.SlidingWindow(5))(q, k, v), q)
    assert_close(got, want, rtol=1e-6)
