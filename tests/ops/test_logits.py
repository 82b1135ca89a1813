"""Sinks and soft-capping, in every implementation beside a formula that is written here."""

from __future__ import annotations

import math

import pytest
import torch
from test_attend import CASES as ATTENDED
from test_attend import needs
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import foveal
from foveal import patterns as P
from foveal.ops import PyramidBias, WindowBias, attend, explain
from foveal.ops.choose import IMPLS
from foveal.ops.logits import with_sinks
from foveal.ops.lowered import attend_lowered
from foveal.testing import dense_attention

PLANNED = ["tiled", "native"]


def formula(q, k, v, mask, sinks=None, softcap=None, bias=None, key_mask=None):
    """(out, lse) in float64, one row of logits at a time."""
    groups = q.shape[1] // k.shape[1]
    k, v = (torch.cat([x[:, g // groups, None] for g in range(q.shape[1])], 1) for x in (k, v))
    logits = torch.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(q.shape[-1])
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logits = logits if bias is None else logits + bias
    keep = mask.expand(logits.shape)
    keep = keep if key_mask is None else keep & key_mask[:, None, None]
    weights = torch.where(keep, logits, -torch.inf).exp()  # logits of tests are small
    total = weights.sum(-1)
    total = total if sinks is None else total + sinks.exp()[:, None]
    safe = torch.where(total > 0, total, 1.0)
    return weights @ v / safe[..., None], torch.where(total > 0, safe.log(), -torch.inf)


def draw(n: int, m: int | None = None, dtype=torch.float32, heads=4, kv_heads=2, dim=8):
    """q, k and v; heads lie apart in memory, as projections give them."""
    m = n if m is None else m
    sizes = ((n, heads), (m, kv_heads), (m, kv_heads))
    made = [torch.randn(2, length, count, dim).to(dtype) for length, count in sizes]
    return [x.transpose(1, 2).detach().requires_grad_() for x in made]


def check(got, want, given, limit):
    """Outputs, log-sum-exp and gradients of both, by relative root mean square."""
    fin = want[1].isfinite()
    assert torch.equal(fin, got[1].isfinite())
    seeds = [torch.randn_like(x) for x in want]
    found = [(x.masked_fill(~fin, 0.0), 0) for x in (got[1], want[1])]
    grads = []
    for (out, _), (lse, _) in zip((got, want), found, strict=True):
        loss = (out.double() * seeds[0]).sum() + (lse.double() * seeds[1]).sum()
        grads.append(torch.autograd.grad(loss, given, materialize_grads=True, retain_graph=True))
    pairs = [(got[0], want[0]), (found[0][0], found[1][0]), *zip(*grads, strict=True)]
    for one, other in pairs:
        error = (one.double() - other.double()).norm()
        assert error <= limit * other.double().norm().clamp(min=1e-6), (error, other.norm())


CASES = {
    "window": (P.SlidingWindow(20), 131),
    "one": (P.Full(causal=True), 1),
    "nothing": (P.SlidingWindow(3), 0),
    "halo": (P.Halo((9, 7), 4, 2), 63),
    "near": (P.Neighborhood((9, 11), 5), 99),
    "blocks": (P.Blocks(5, lookback=1), 23),
    "heads": (P.BlockSparse(torch.rand(4, 3, 3, generator=torch.manual_seed(0)) < 0.5, 16), 48),
}


@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("impl", ["reference", *PLANNED])
def test_equals_the_formula(impl, name, softcap):
    """Outputs, log-sum-exp and all gradients, with biases, padding and grouped heads."""
    needs(impl)
    torch.manual_seed(0)
    pattern, n = CASES[name]
    dtype, limit = (torch.float32, 2e-5) if impl == "native" else (torch.float64, 1e-10)
    given = draw(n, dtype=dtype)
    sinks = (2 * torch.randn(4, dtype=dtype)).requires_grad_()
    key_mask = torch.rand(2, n) > 0.3
    key_mask[0] = False  # rows without keys
    bias, added = None, None
    if name == "halo":
        parts = [torch.randn(2, 4, n, 8, dtype=dtype, requires_grad=True) for _ in "ab"]
        bias = WindowBias(*parts)
        added = WindowBias(*(x.double() for x in parts)).dense(pattern, n)
        given += parts
    elif name in ("near", "heads"):
        bias = torch.randn(1, 4, n, n, dtype=dtype, requires_grad=True)
        added = bias.double()
        given.append(bias)
    options = {"softcap": softcap, "key_mask": key_mask, "sinks": sinks}
    got = attend(*given[:3], pattern, bias=bias, impl=impl, return_lse=True, **options)
    options["sinks"] = sinks.double()
    mask = pattern.mask(n, n)
    want = formula(*(x.double() for x in given[:3]), mask, bias=added, **options)
    check(got, want, [*given, sinks], limit)
    if n:
        assert torch.equal(got[0][0], torch.zeros_like(got[0][0]))  # it had no keys
        torch.testing.assert_close(got[1][0], sinks.expand(n, 4).T)


@pytest.mark.parametrize("options", [{"softcap": 2.0}, {"sinks": 1}, {"softcap": 2.0, "sinks": 1}])
@pytest.mark.parametrize("pattern", [P.Full(), P.Full(causal=True), P.SlidingWindow(7)])
def test_dense(pattern, options):
    """Dense attention has no log-sum-exp: there a sink is a key, with and without other masks."""
    torch.manual_seed(0)
    for dtype, limit in ((torch.float64, 1e-10), (torch.float32, 2e-5), (torch.bfloat16, 3e-2)):
        given, given_options = draw(30, dtype=dtype), dict(options)
        sinks = None
        if "sinks" in options:  # more digits than the queries have
            sinks = torch.randn(4, dtype=torch.promote_types(dtype, torch.float32))
            given_options["sinks"] = sinks = (2 * sinks).requires_grad_()
        got = attend(*given, pattern, impl="dense", **given_options)
        given_options["sinks"] = None if sinks is None else sinks.double()
        want, lse = formula(*(x.double() for x in given), pattern.mask(30), **given_options)
        every = given if sinks is None else [*given, sinks]
        check((got, lse.detach()), (want, lse.detach()), every, limit)


@pytest.mark.parametrize(("pattern", "length"), ATTENDED, ids=str)
def test_every_pattern(pattern, length):
    """The kernel under every pattern, beside the public oracle."""
    needs("native")
    q, k, v = (x.detach() for x in draw(length, heads=2, kv_heads=1))
    options = {"sinks": torch.randn(2), "softcap": 0.7}
    out, lse = attend(q, k, v, pattern, impl="native", return_lse=True, **options)
    want = dense_attention(q, k, v, pattern, **options)
    torch.testing.assert_close(out.double(), want[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(lse.double(), want[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("queries", ["fine", "coarse"])
def test_pyramid(queries):
    """Pooled keys: the soft-cap is for the product alone, the sink for all levels together."""
    needs("native")
    pattern = P.Pyramid(4, causal=True, queries=queries)
    given = draw(37, dtype=torch.float64)
    sinks = torch.randn(4, dtype=torch.float64, requires_grad=True)
    table = torch.randn(15, 4, dtype=torch.float64, requires_grad=True)
    options = {"bias": PyramidBias(table), "softcap": 0.5, "return_lse": True}
    want = attend(*given, pattern, impl="reference", **options)
    check(attend(*given, pattern, impl="tiled", **options), want, [*given, table], 1e-10)
    assert not torch.allclose(want[0], attend(*given, pattern, bias=PyramidBias(table)))
    want = with_sinks(*want, sinks)
    got = attend(*given, pattern, impl="tiled", sinks=sinks, **options)
    check(got, want, [*given, table, sinks], 1e-10)
    single = [x.detach().float() for x in (*given, sinks)]
    out = attend(*single[:3], pattern, impl="native", sinks=single[3], softcap=0.5)
    plain = attend(*given, pattern, impl="tiled", sinks=sinks, softcap=0.5)
    torch.testing.assert_close(out.double(), plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("impl", PLANNED)
def test_half_precision(impl):
    """bfloat16 beside sinks in float32, whose gradient keeps their dtype."""
    needs(impl)
    given, sinks = draw(70, dtype=torch.bfloat16), torch.randn(4, requires_grad=True)
    options = {"softcap": 3.0, "sinks": sinks}
    got = attend(*given, P.SlidingWindow(9), impl=impl, return_lse=True, **options)
    assert got[0].dtype == torch.bfloat16
    options["sinks"] = sinks.double()
    want = formula(*(x.double() for x in given), P.SlidingWindow(9).mask(70), **options)
    check(got, want, [*given, sinks], 3e-2)
    (grad,) = torch.autograd.grad(got[0].float().sum(), sinks)
    assert grad.dtype == torch.float32


def test_the_cap_of_the_kernel():
    """Its tanh is exact to 5e-7 from 1e-6 to far beyond where it is one, and odd."""
    needs("native")
    x = torch.logspace(-6, 3, 4000)
    x, cap = 1e6 * torch.cat((x, -x)), 1e6  # so that the logarithm's own rounding is small
    q, k = torch.ones(1, 1, 8000, 1), x[None, None, :, None]
    lse = attend(q, k, k, P.Blocks(1), softcap=cap, impl="native", return_lse=True)[1][0, 0]
    want = cap * torch.tanh(x.double() / cap)
    assert ((lse - want) / want).abs().max() < 5e-7


@pytest.mark.parametrize("sink", [-math.inf, -1e4, 0.0, 1e4])
@pytest.mark.parametrize("impl", ["reference", *PLANNED])
def test_extreme_sinks(impl, sink):
    """None at all, one that takes nothing, and one that takes all; never NaN."""
    needs(impl)
    q, k, v = draw(20)
    sinks = torch.full((4,), sink, requires_grad=True)
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[1] = False
    options = {"key_mask": mask, "impl": impl}
    out, lse = attend(q, k, v, P.SlidingWindow(5), sinks=sinks, return_lse=True, **options)
    plain = attend(q, k, v, P.SlidingWindow(5), **options)
    if sink < 0:
        torch.testing.assert_close(out, plain)
    assert (out == 0).all() == (sink > 1)
    loss = out.sum() + lse.masked_fill(lse == -math.inf, 0.0).sum()
    for grad in torch.autograd.grad(loss, (q, k, v, sinks)):
        assert grad.isfinite().all()


def lowered(*given: Tensor, impl: str, **options) -> Tensor:
    """`attend` as exports write it."""
    return attend_lowered(*given, **options)[0]


@pytest.mark.parametrize("impl", ["reference", "dense", *PLANNED, "lowered"])
@pytest.mark.parametrize("lowest", [torch.finfo(torch.float32).min, -1e38, -1e37, -65504.0])
def test_the_lowest_biases_beside_a_head_without_a_sink(impl, lowest):
    """Where there is no sink they are numbers like any other, whose row has a mean."""
    needs(impl)
    given, pattern = draw(20), P.SlidingWindow(5)
    bias, sinks = torch.zeros(20, 20), torch.tensor([-math.inf, 0.3, -math.inf, -1e3])
    bias[3], bias[7, ::2] = lowest, lowest
    bias[9, 8] = -math.inf
    given, bias = [x.detach().requires_grad_() for x in given], bias.requires_grad_()
    run = lowered if impl == "lowered" else attend
    out = run(*given, pattern, bias=bias, sinks=sinks, impl=impl)
    plain = attend(*given, pattern, bias=bias, impl="reference")
    torch.testing.assert_close(out[:, ::2], plain[:, ::2], atol=2e-2, rtol=0)
    assert not out[:, 1, 3].any()
    leaves = (*given, bias)
    grads = [torch.autograd.grad(x[:, ::2].square().sum(), leaves) for x in (out, plain)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, atol=5e-2, rtol=0)


@pytest.mark.parametrize("impl", PLANNED)
def test_a_query_that_is_not_finite_spoils_itself_only(impl):
    """NaN passes a soft-cap as NaN, and only to the query that has it."""
    needs(impl)
    q, k, v = (x.detach() for x in draw(90))
    q[0, 0, 40], k[0, 0, 10] = math.nan, math.nan
    q.requires_grad_(), k.requires_grad_(), v.requires_grad_()
    mask = torch.ones(2, 90, dtype=torch.bool)
    mask[0, 10] = False
    out = attend(q, k, v, P.SlidingWindow(5), softcap=2.0, key_mask=mask, impl=impl)
    broken = out.isnan().any(-1)
    assert broken.nonzero().tolist() == [[0, 0, 40]]
    if impl == "tiled":  # whose products over the queries of a tile know no bounds
        return
    grads = torch.autograd.grad(out[:, :, :36].sum(), (q, k, v))
    assert all(grad[:, :, :30].isfinite().all() for grad in grads)


@pytest.mark.parametrize("impl", ["reference", "dense", "tiled"])
def test_second_derivatives(impl):
    """Gradients of gradients, to q, k, v and sinks."""
    given = [x[:1, :2, :, :2].detach().requires_grad_() for x in draw(5, dtype=torch.float64)]
    sinks = torch.randn(2, dtype=torch.float64, requires_grad=True)

    def run(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
        return attend(q, k, v, P.SlidingWindow(3), sinks=sinks, softcap=1.0, impl=impl)

    assert torch.autograd.gradgradcheck(run, (*given, sinks))
    _, tangent = torch.func.jvp(run, (*given, sinks), tuple(map(torch.ones_like, (*given, sinks))))
    assert tangent.isfinite().all()


class Layer(torch.nn.Module):
    """One call, with learned sinks."""

    def __init__(self) -> None:
        super().__init__()
        self.sinks = torch.nn.Parameter(torch.randn(4))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, P.SlidingWindow(16), sinks=self.sinks, softcap=5.0)


def test_through_the_compiler():
    """fullgraph with gradients, export, autocast."""
    layer, given = Layer(), draw(80)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    every = (*given, layer.sinks)
    for got, want in zip(
        torch.autograd.grad(compiled(*given).square().sum(), every),
        torch.autograd.grad(layer(*given).square().sum(), every),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    plain = tuple(x.detach() for x in given)
    exported = torch.export.export(layer, plain).module()
    torch.testing.assert_close(exported(*plain), layer(*plain), rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(*plain).dtype == torch.bfloat16


def test_operations_are_counted():
    """Sinks and a soft-cap add no product: the count is that of the pairs."""
    q, k, v = (x.detach() for x in draw(200, kv_heads=4))
    counts = []
    for options in ({}, {"sinks": torch.zeros(4), "softcap": 9.0}):
        with FlopCounterMode(display=False) as counter:
            attend(q, k, v, P.SlidingWindow(8), impl="tiled", **options)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_flex_and_triton():
    """flex takes both on the CPU as elsewhere; a kernel that lacks one says so."""
    q, k, v = (x.detach() for x in draw(50))
    options = {"sinks": torch.randn(4), "softcap": 1.5}
    out = attend(q, k, v, P.SlidingWindow(9), impl="flex", **options)
    torch.testing.assert_close(out, attend(q, k, v, P.SlidingWindow(9), **options))


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"sinks": 1.0}, TypeError, "sinks must be a floating tensor"),
        ({"sinks": True}, TypeError, "sinks must be a floating tensor"),
        ({"sinks": [0.0] * 4}, TypeError, "got list"),
        ({"sinks": torch.zeros(4, dtype=torch.int64)}, ValueError, "sinks must be floating"),
        ({"sinks": torch.zeros(4, dtype=torch.bool)}, ValueError, "sinks must be floating"),
        ({"sinks": torch.zeros(2)}, ValueError, r"\(heads,\) = \(4,\), got \(2,\)"),
        ({"sinks": torch.zeros(4, 1)}, ValueError, r"got \(4, 1\)"),
        ({"sinks": torch.zeros(4, device="meta")}, ValueError, "device of q"),
        *(
            ({"softcap": value}, ValueError, "softcap must be a positive number")
            for value in (0, -1.0, math.nan, math.inf, True, "5", [5.0])
        ),
        ({"softcap": torch.tensor(5.0)}, TypeError, "softcap must be a number, got a tensor"),
    ],
)
def test_errors_are_for_people(options, kind, words):
    """The argument, what came and what was expected, in one line."""
    with pytest.raises(kind, match=words) as caught:
        attend(*draw(5), P.Full(), **options)
    assert "\n" not in str(caught.value)


def test_explain_tells_of_both():
    """Which implementation computes them, and that the call has them."""
    found = explain(P.SlidingWindow(64), 4096, sinks=True, softcap=True)
    assert found.impl == "native" if "native" in IMPLS else "tiled"
    assert found.logits == ("soft-capped", "a sink a head")
    assert "soft-capped, a sink a head" in str(found)
    assert "logits" not in str(explain(P.SlidingWindow(64), 4096))
    long = explain(P.Full(), 300, softcap=True, device="meta", requires_grad=False)
    assert long.logits == ("soft-capped",)
    tabled = foveal.explain(P.SlidingWindow(8), 40, table_bias=True, sinks=True)
    assert tabled.logits == ("a row of a table a pair", "a sink a head")
    with pytest.raises(ValueError, match="softcap must be True or False"):
        explain(P.Full(), 40, softcap=50.0)
    assert foveal.explain is explain
