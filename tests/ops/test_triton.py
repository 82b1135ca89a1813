"""The Triton kernels against the float64 oracle: on a GPU, or in Triton's interpreter.

Triton decides when it is imported whether it interprets, so without a GPU these tests run in a
process of their own, started by test_triton_choice.py with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import functools

import pytest
import torch

import foveal
from foveal import patterns as P
from foveal.ops import WindowBias, triton
from foveal.ops.reference import masked_attention
from foveal.ops.tiled_op import tiled_attend
from foveal.testing import assert_close

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LACKS = triton.why_not(DEVICE, torch.float32, P.Halo(8), 64)
if LACKS is not None:
    pytest.skip(f"Triton: {LACKS}", allow_module_level=True)
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []
TOLERANCE = {torch.float32: 5e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}
HEADS = 1 if DEVICE == "cpu" else 2  # a program a head, each interpreted for as long
HALVES = [torch.float16] if DEVICE == "cpu" else [torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True, scope="module")
def spoken_once():
    """Triton's interpreter makes its language numpy's once a launch, not at each call within.

    It forgets that it has, and most of its time would go by looking through the language again;
    and it writes a table of all types to look one up.
    """
    if DEVICE == "cuda" or LACKS is not None:
        yield
        return
    from triton.language import core
    from triton.runtime import interpreter

    speak = interpreter._patch_lang

    def speak_once(function):
        names = function.__globals__
        language = names.get("tl", names.get("core"))
        return speak(function) if core.is_builtin(language.load) else None

    look_up = interpreter._get_np_dtype
    types = functools.cache(look_up)

    def known(dtype):
        plain = dtype.scalar
        return look_up(dtype) if plain.is_ptr() else types(plain)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang", speak_once)
        patch.setattr(interpreter, "_get_np_dtype", known)
        yield


def tensor(batch, heads, length, dim, dtype=torch.float32):
    """Heads side by side in memory, as a projection leaves them."""
    x = torch.randn(batch, length, heads, dim, device=DEVICE).to(dtype)
    return x.transpose(1, 2).requires_grad_()


def inputs(pattern, length, *, batch=1, heads=HEADS, kv_heads=None, dim=8, dim_v=8, dtype, biased):
    """q, k, v and, if biased, rows and columns."""
    torch.manual_seed(0)
    count = pattern.num_queries(length)
    given = [tensor(batch, heads, count, dim, dtype)]
    given += [tensor(batch, kv_heads or heads, length, d, dtype) for d in (dim, dim_v)]
    if biased:
        given += [tensor(batch, heads, count, side, dtype) for side in pattern.window]
    return given


def check(
    pattern, length=None, *, key_mask=None, biased=True, dtype=torch.float32, softcap=None, **sizes
):
    """Outputs, log-sum-exps and every gradient of both, beside the oracle."""
    length = pattern.height * pattern.width if length is None else length
    given = inputs(pattern, length, dtype=dtype, biased=biased, **sizes)
    exact = [x.detach().double().requires_grad_() for x in given]
    bias = WindowBias(*given[3:]) if biased else None
    out, lse = foveal.attend(
        *given[:3],
        pattern,
        bias=bias,
        key_mask=key_mask,
        impl="triton",
        return_lse=True,
        softcap=softcap,
    )
    want, want_lse = masked_attention(
        *exact[:3],
        pattern.mask(given[0].shape[2], length, torch.device(DEVICE)),
        bias=WindowBias(*exact[3:]).dense(pattern, length) if biased else None,
        softcap=softcap,
        key_mask=key_mask,
    )
    rtol = TOLERANCE[dtype]
    assert_close(out, want, rtol=rtol)
    alive = want_lse > -torch.inf
    assert torch.equal(lse > -torch.inf, alive)
    assert_close(lse[alive], want_lse[alive], rtol=rtol)
    weight, weight_lse = torch.randn_like(want), torch.randn_like(want_lse[alive])
    grads = torch.autograd.grad((out * weight).sum() + (lse[alive] * weight_lse).sum(), given)
    expected = torch.autograd.grad(
        (want * weight).sum() + (want_lse[alive] * weight_lse).sum(), exact
    )
    for got, grad, x in zip(grads, expected, given, strict=True):
        assert got.dtype == x.dtype
        assert_close(got, grad, rtol=rtol)
    return out, grads


SHAPES = [
    P.Halo((5, 7), 4, 2),  # neither side is a multiple of the block
    P.Halo((6, 7), 4, 1, 2),  # queries at every second pixel
    P.Halo((8, 12), (4, 6), (1, 3)),
    P.Halo((4, 6), (3, 5), (4, 0)),  # a halo wider than its block, and none
    P.Halo((5, 3), 8, 3),  # an image smaller than its block
    P.Halo((1, 9), 4, 1),
]


@pytest.mark.parametrize(
    ("pattern", "biased"),
    [
        *((pattern, True) for pattern in SHAPES),
        *((pattern, False) for pattern in (SHAPES[:2] if DEVICE == "cpu" else SHAPES)),
    ],
)
def test_it_equals_the_oracle(pattern, biased):
    """Outputs and the gradients of q, k, v, rows and columns are exact for every shape."""
    check(pattern, biased=biased)


@pytest.mark.parametrize("biased", [True, False])
def test_soft_cap(biased):
    """The product is capped and not the bias, which keeps its gradient."""
    check(P.Halo((3, 5), 4, 1), biased=biased, softcap=0.7)


def test_blocks_of_more_queries_than_a_tile():
    """A block of 12 x 12 pixels takes several programs, its window several steps."""
    check(P.Halo((9, 12), 12, 2), heads=1)


@pytest.mark.parametrize(("dim", "dim_v"), [(1, 1), (24, 40), (65, 16), (80, 130), (256, 256)])
def test_any_head_dim(dim, dim_v):
    """Features that fill no power of two, and values wider or narrower than keys."""
    check(P.Halo((2, 3), 4, 1), heads=1, dim=dim, dim_v=dim_v)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("dim", [16, 64])
def test_half_precision(dtype, dim):
    """Half-precision tensors, accumulated in float32, with and without whole tiles."""
    check(P.Halo((9, 8), 8, 4), dtype=dtype, dim=dim, dim_v=dim, heads=1)


def test_rows_without_keys_are_zero():
    """Padding is never read; an image of padding gives zeros, -inf and no gradient."""
    pattern = P.Halo((3, 7), 4, 1)
    key_mask = torch.rand(2, 21, device=DEVICE) > 0.4
    key_mask[0] = False
    out, grads = check(pattern, batch=2, key_mask=key_mask)
    assert not out[0].any()
    for grad in grads:
        assert not grad[0].any()


def test_heads_may_share_keys():
    """Grouped queries: the gradient of a key head sums over its query heads."""
    check(P.Halo((3, 5), 4, 1), heads=4, kv_heads=2)


@pytest.mark.parametrize("length", [1, 13, 20])
def test_part_of_an_image(length):
    """A sequence may be the first pixels of its image."""
    check(P.Halo((5, 6), 4, 1), length)


def test_no_images():
    """An empty batch gives an empty result with gradients."""
    check(P.Halo(4, 4, 1), batch=0)


@pytest.mark.filterwarnings("ignore:All-NaN:RuntimeWarning")  # the interpreter's maximum
def test_logits_of_any_size():
    """Logits of thousands stay finite, and a NaN in the input is a NaN in the output."""
    pattern = P.Halo((4, 8), 4, 0)
    q, k, v = inputs(pattern, 32, dtype=torch.float32, biased=False)
    assert torch.isfinite(foveal.attend(1000 * q, 1000 * k, v, pattern, impl="triton")).all()
    poisoned = q.detach().clone()
    poisoned[0, 0, 5] = torch.nan
    out = foveal.attend(poisoned, k, v, pattern, impl="triton")
    assert out[0, 0, 5].isnan().all()
    assert out.isnan().sum() == out.shape[-1]


def test_any_strides():
    """Heads side by side or apart, and features that are not contiguous, give the same."""
    pattern = P.Halo((3, 6), 4, 1)
    given = inputs(pattern, 18, dtype=torch.float32, biased=True)
    results = []
    for form in (lambda x: x, lambda x: x.contiguous(), lambda x: x.mT.contiguous().mT):
        q, k, v, *bias = (form(x) for x in given)
        out = foveal.attend(q, k, v, pattern, bias=WindowBias(*bias), impl="triton")
        results.append([out, *torch.autograd.grad(out.square().sum(), given)])
    for other in results[1:]:
        for got, want in zip(other, results[0], strict=True):
            assert torch.equal(got, want)


def test_results_are_reproducible():
    """Two runs give the same bits, gradients included."""
    pattern = P.Halo((9, 10), 4, 2) if DEVICE == "cuda" else P.Halo((3, 6), 4, 1)
    length = pattern.height * pattern.width
    given = inputs(pattern, length, dtype=torch.float32, biased=True)
    runs = []
    for _ in range(2):
        out = foveal.attend(*given[:3], pattern, bias=WindowBias(*given[3:]), impl="triton")
        runs.append([out, *torch.autograd.grad(out.square().sum(), given)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_it_compiles_to_one_graph():
    """torch.compile sees one opaque operator, forward and backward."""
    pattern = P.Halo((2, 3), 4, 1)
    given = inputs(pattern, 6, dtype=torch.float32, biased=True)

    def loss(q, k, v, *bias):
        out = foveal.attend(q, k, v, pattern, bias=WindowBias(*bias), impl="triton")
        return out.square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    wanted = torch.autograd.grad(loss(*given), given)
    for got, want in zip(torch.autograd.grad(compiled(*given), given), wanted, strict=True):
        assert_close(got, want, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pattern": P.SlidingWindow(4)}, "Halo"),
        ({"dropout_p": 0.1}, "dropout"),
        ({"bias": torch.zeros(1, device=DEVICE)}, "WindowBias"),
        ({"pattern": P.Halo((2, 8), 8, 80)}, "128 wide"),
    ],
)
def test_it_names_what_it_lacks(change, words):
    """An explicit impl never falls back."""
    q, k, v = inputs(P.Halo((2, 8), 8, 0), 16, dtype=torch.float32, biased=False)
    options = {"pattern": P.Halo((2, 8), 8, 0)} | change
    with pytest.raises(ValueError, match=f"triton.*{words}"):
        foveal.attend(q, k, v, **options, impl="triton")


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dim", [16, 32, 64, 128])
@pytest.mark.parametrize(("block", "halo"), [(8, 4), (8, 3), (4, 1), (14, 3)])
def test_sizes_of_models(block, halo, dim, dtype):
    """On a GPU every tile size that models use is computed right, not only the small ones."""
    check(P.Halo((30, 43), block, halo), batch=2, heads=4, dim=dim, dim_v=dim, dtype=dtype)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_it_is_picked_for_relative_positions():
    """On a GPU attend() takes the kernels for a WindowBias, as explain() says."""
    pattern = P.Halo(16, 8, 3)
    q, k, v, *bias = inputs(pattern, 256, dtype=torch.float32, biased=True, dim=64, dim_v=64)
    out, named = (
        foveal.attend(q, k, v, pattern, bias=WindowBias(*bias), impl=impl)
        for impl in (None, "triton")
    )
    assert torch.equal(out, named)
    assert foveal.explain(pattern, 256, "cuda", window_bias=True).impl == "triton"


def test_kernels_are_trusted_only_where_they_are_right(monkeypatch):
    """A small problem is compared with tiled; wrong kernels are left alone, with a warning."""
    from foveal.ops.triton import trust

    ask = trust.trusted.__wrapped__
    options = ((4, 2), (1, 2), 1, 16, 24, torch.float32, DEVICE)
    assert ask(*options)

    def wrong(q, k, v, *rest):
        return tiled_attend(q, k, v.flip(2), *rest)

    monkeypatch.setattr(trust, "triton_attend", wrong)
    with pytest.warns(UserWarning, match="wrong results"):
        assert not ask(*options)

    def broken(*_):
        raise RuntimeError("no such architecture")

    monkeypatch.setattr(trust, "triton_attend", broken)
    with pytest.warns(UserWarning, match="no such architecture"):
        assert not ask(*options)
