"""Documents in attend(): every implementation against the documents one by one, and what is kept
apart."""

import math

import pytest
import torch
from torch import Tensor

import foveal
from foveal import patterns as P
from foveal.ops import native
from foveal.testing import assert_close

LENGTHS = (97, 0, 1, 130, 64, 13)
WITHIN = [
    P.Full(causal=True),
    P.SlidingWindow(40),
    P.SlidingWindow(9, causal=False),
    P.Strided(8),
    P.Full(),
]
IMPLS = ["reference", "dense", "tiled"]
if native.why_not("cpu", torch.float32) is None:
    IMPLS.append("native")


def alone(q: Tensor, k: Tensor, v: Tensor, distance_allowed) -> Tensor:
    """Softmax attention of one document from its formula, in float64."""
    i, j = torch.arange(q.shape[2])[:, None], torch.arange(k.shape[2])[None]
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    logits = torch.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(q.shape[3])
    weights = logits.masked_fill(~distance_allowed(i - j), -math.inf).softmax(-1)
    return weights @ v


def rules():
    return {
        WITHIN[0]: lambda d: d >= 0,
        WITHIN[1]: lambda d: (d >= 0) & (d < 40),
        WITHIN[2]: lambda d: d.abs() < 9,
        WITHIN[3]: lambda d: (d >= 0) & ((d < 8) | (d % 8 == 0)),
        WITHIN[4]: lambda d: d < 10**9,
    }


def tensors(dtype=torch.float64, length=305, grad=True):
    torch.manual_seed(1)
    shapes = ((2, 4, length, 16), (2, 2, length, 16), (2, 2, length, 24))
    return [torch.randn(s, dtype=torch.float64).to(dtype).requires_grad_(grad) for s in shapes]


def one_by_one(q: Tensor, k: Tensor, v: Tensor, within: P.Pattern) -> Tensor:
    parts = (x.split(LENGTHS, 2) for x in (q, k, v))
    return torch.cat([alone(*one, rules()[within]) for one in zip(*parts, strict=True)], 2)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("within", WITHIN, ids=repr)
def test_as_one_by_one(within, impl):
    """Outputs and all gradients are those of each document alone, padding after them is zero."""
    exact = tensors()
    want = one_by_one(*exact, within)
    noise = torch.randn_like(want)
    want_grads = torch.autograd.grad((want * noise).sum(), exact)
    dtype = torch.float32 if impl == "native" else torch.float64
    given = [x.detach().to(dtype).requires_grad_() for x in exact]
    # of queries it is promised where tiles are planned
    fill = (math.nan if impl in IMPLS[2:] else 1.0, math.nan, math.nan)
    padded = [
        torch.nn.functional.pad(x, (0, 0, 0, 7), value=one)
        for x, one in zip(given, fill, strict=True)
    ]
    out = foveal.attend(*padded, P.Documents(LENGTHS) & within, impl=impl)
    assert bool((out[:, :, -7:] == 0).all())
    grads = torch.autograd.grad((out[:, :, :-7] * noise).sum(), given)
    limit = 2e-5 if impl == "native" else 1e-10
    for got, wanted in zip((out[:, :, :-7], *grads), (want, *want_grads), strict=True):
        error = (got.double() - wanted).pow(2).mean().sqrt() / wanted.pow(2).mean().sqrt()
        assert error < limit


@pytest.mark.parametrize("impl", [*IMPLS[2:], None])
@pytest.mark.parametrize("within", [*WITHIN[:4], P.Blocks(16, causal=True)], ids=repr)
def test_documents_are_apart(within, impl):
    """Outputs and gradients of a document stay bit for bit when others change, to NaN even."""
    pattern = P.Documents(LENGTHS) & within
    q, k, v = tensors(torch.float32)
    bounds = torch.tensor(LENGTHS).cumsum(0)
    mine = slice(int(bounds[2]), int(bounds[3]))

    def run(*given: Tensor) -> list[Tensor]:
        leaves = [x.detach().requires_grad_() for x in given]
        out = foveal.attend(*leaves, pattern, impl=impl)
        grads = torch.autograd.grad(out[:, :, mine].square().sum(), leaves)
        return [x[:, :, mine] for x in (out, *grads)]

    before = run(q, k, v)
    for change in (lambda x: x * 2 + 1, lambda x: torch.full_like(x, math.nan)):
        others = [change(x.detach()) for x in (q, k, v)]
        for new, old in zip(others, (q, k, v), strict=True):
            new[:, :, mine] = old[:, :, mine].detach()
        for new, old in zip(run(*others), before, strict=True):
            assert torch.equal(new, old)


@pytest.mark.parametrize("impl", IMPLS[2:])
def test_outputs_do_not_depend_on_the_pack(impl):
    """A document has the same bits wherever it stands, whatever is packed with it."""
    x = torch.randn(1, 2, 400, 32, generator=torch.Generator().manual_seed(3))
    found = []
    for lengths in ((150, 130, 120), (250, 150), (150,), (64, 64, 64, 58, 150)):
        first = sum(lengths[: lengths.index(150)])
        row = torch.randn(1, 2, sum(lengths), 32)
        row[:, :, first : first + 150] = x[:, :, :150]
        out = foveal.attend(row, row, row, P.Documents(lengths) & P.SlidingWindow(70), impl=impl)
        found.append(out[:, :, first : first + 150])
    for other in found[1:]:
        assert torch.equal(found[0], other)


def test_short_rows_choose_tiles():
    """Without a named implementation nothing passes between documents at any length."""
    for lengths in ((1, 1), (3, 5), (30, 34), (700, 1)):
        found = foveal.explain(P.Documents(lengths), sum(lengths))
        assert found.impl in ("native", "tiled")
        assert "two documents" in found.reason


def test_heads_with_layouts_of_their_own():
    """Documents cut every head of a pattern that has several."""
    layout = torch.rand(4, 20, 20, generator=torch.Generator().manual_seed(1)) < 0.4
    pattern = P.Documents((33, 50)) & P.BlockSparse(layout, 5)
    q, k, v = tensors(length=83, grad=False)
    want = foveal.attend(q, k, v, pattern, impl="reference")
    assert_close(foveal.attend(q, k, v, pattern, impl="tiled"), want)


def test_compiled():
    """A graph holds a pack, and a next one gives another graph."""

    @torch.compile(fullgraph=True, backend="aot_eager")
    def run(x, pattern):
        return foveal.attend(x, x, x, pattern)

    x = torch.randn(1, 2, 100, 8)
    for lengths in ((40, 60), (1, 99)):
        pattern = P.Documents(lengths) & P.SlidingWindow(9)
        assert_close(run(x, pattern), foveal.attend(x, x, x, pattern))


@pytest.mark.parametrize("impl", [None, *IMPLS])
@pytest.mark.parametrize("first", [0, 97, 120, 290])
def test_some_queries(first, impl):
    """Queries from an offset on get what they get among all, and read their documents only."""
    q, k, v = tensors(torch.float32, grad=False)
    for pattern in (
        P.Documents(LENGTHS) & P.SlidingWindow(40),
        P.Documents(LENGTHS) & P.Blocks(16, causal=True),
        P.Packed(P.Strided(8), LENGTHS),
    ):
        whole = foveal.attend(q, k, v, pattern, impl="reference")[:, :, first : first + 15]
        some = q[:, :, first : first + 15]
        out = foveal.attend(some, k, v, pattern, q_offset=first, impl=impl)
        assert_close(out, whole)


@pytest.mark.parametrize("impl", IMPLS[2:])
def test_tables_of_packs(impl):
    """A table of biases keeps documents apart too, NaN included."""
    q, k, v = tensors(torch.float32, grad=False)
    table = foveal.TableBias(torch.randn(81, 4))
    pattern = P.Documents(LENGTHS) & P.SlidingWindow(40)
    want = foveal.attend(q, k, v, pattern, bias=table, impl="reference")
    k[:, :, :97] = math.nan
    out = foveal.attend(q, k, v, pattern, bias=table, impl=impl)
    assert_close(out[:, :, 97:], want[:, :, 97:])


@pytest.mark.skipif("native" not in IMPLS, reason="there is no native kernel here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lengths", [(300, 1, 299, 0, 257), (700,), (90,) * 9, (256, 256, 300)])
def test_gradients_made_a_few_documents_at_a_time(lengths, dtype):
    """Keys of all documents, and padding, get their gradients however the kernel cuts the row."""
    pattern = P.Documents(lengths) & P.SlidingWindow(90)
    given = tensors(dtype, length=sum(lengths) + 5)
    bias = torch.randn(4, 1, sum(lengths) + 5, requires_grad=True)
    found = {}
    for impl in ("native", "reference"):
        out = foveal.attend(*given, pattern, bias=bias, impl=impl)
        weights = torch.linspace(-1, 1, out.numel()).view(out.shape).to(dtype)
        found[impl] = (out, *torch.autograd.grad((out * weights).sum(), [*given, bias]))
    tolerance = 5e-6 if dtype == torch.float32 else 3e-2
    for mine, right in zip(found["native"], found["reference"], strict=True):
        error = (mine - right).float().square().mean().sqrt()
        assert error <= tolerance * right.float().square().mean().sqrt() + 1e-7
