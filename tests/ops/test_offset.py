"""attend(q_offset=): some of the queries of a pattern, as rows of the whole, in float64.

The formula is `oracle.formula` over all queries of the pattern, of which the rows are taken.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy
import pytest
import torch
from oracle import Case, formula
from test_against_oracle import any_pattern
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import foveal
from foveal import PyramidBias, WindowBias
from foveal import patterns as P
from foveal.ops import native
from foveal.testing import assert_close, assert_pattern

COUNT = 40


@dataclass(frozen=True)
class Lagged(P.Pattern):
    """A stranger without closed forms: each query reads three keys some way back."""

    lag: int

    def allows(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        back = q_idx - k_idx
        return (back >= self.lag) & (back < self.lag + 3)


@dataclass(frozen=True)
class LaggedApart(Lagged):
    """The same, with its interval form."""

    def overlap(
        self, q_first: Tensor, q_last: Tensor, k_first: Tensor, k_last: Tensor
    ) -> tuple[Tensor, Tensor]:
        some = (q_last - k_first >= self.lag) & (q_first - k_last < self.lag + 3)
        return some, torch.zeros_like(some)


def draw_case(number: int) -> tuple[Case, int, int]:
    """(a call with all queries, the first of those that are given, how many)"""
    draw = random.Random(number)
    pattern, n_keys = any_pattern(draw, heads=4)
    if number % 10 == 0:
        pattern = draw.choice((Lagged, LaggedApart))(draw.randint(0, 40))
    if isinstance(pattern, P.Pyramid) and pattern.queries == "coarse":
        pattern = P.Pyramid(pattern.block_size, pattern.causal, pattern.neighbors, "fine")
    total = pattern.num_queries(n_keys)
    count = draw.randint(1, total)
    first = draw.choice((0, total - count, draw.randint(0, total - count)))
    torch.manual_seed(number)
    sizes = {"q": (2, 4, total, 8), "k": (2, 2, n_keys, 8), "v": (2, 2, n_keys, 5)}
    tensors = {name: torch.randn(size, dtype=torch.float64) for name, size in sizes.items()}
    options = {}
    if draw.random() < 0.4:
        options["key_mask"] = torch.rand(2, n_keys) > 0.3
    if isinstance(pattern, P.Pyramid) and draw.random() < 0.5:
        tensors["table"] = torch.randn(pattern.bias_size, 4, dtype=torch.float64)
    elif isinstance(pattern, P.Halo) and draw.random() < 0.5:
        for name, size in zip(("rows", "columns"), pattern.window, strict=True):
            tensors[name] = torch.randn(2, 4, total, size, dtype=torch.float64)
    elif not isinstance(pattern, P.Pyramid) and draw.random() < 0.4:
        shape = (draw.choice((1, 2)), draw.choice((1, 4)), total, draw.choice((1, n_keys)))
        tensors["bias"] = torch.randn(shape, dtype=torch.float64)
    return Case(str(number), pattern, tensors, None, options), first, count


def call(case: Case, given: dict[str, Tensor], first: int, count: int, **options) -> Tensor:
    """attend() with the rows of `count` queries from `first` on."""
    rows = slice(first, first + count)
    bias = given.get("bias")
    if bias is not None:
        bias = bias[:, :, rows]
    elif "rows" in given:
        bias = WindowBias(given["rows"][:, :, rows], given["columns"][:, :, rows])
    elif "table" in given:
        bias = PyramidBias(given["table"])
    options |= {"bias": bias, "q_offset": first, **case.options}
    return foveal.attend(given["q"][:, :, rows], given["k"], given["v"], case.pattern, **options)


def leaves(tensors: dict[str, Tensor], dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    return {name: x.detach().to(dtype).requires_grad_() for name, x in tensors.items()}


def implementations(case: Case) -> list[str]:
    if isinstance(case.pattern, P.Pyramid):
        return ["reference", "tiled"]
    return ["reference", "dense", "tiled"]


@pytest.mark.parametrize("number", range(COUNT))
def test_rows_of_the_whole(number: int) -> None:
    """Output, log-sum-exp and all gradients are those of the rows, in every implementation."""
    case, first, count = draw_case(number)
    whole = leaves(case.tensors)
    out, lse = formula(case, whole)
    rows = slice(first, first + count)
    want, want_lse = out[:, :, rows], lse[:, :, rows]
    weight = torch.randn_like(want)
    expected = torch.autograd.grad((want * weight).sum(), list(whole.values()), allow_unused=True)
    for impl in (*implementations(case), None):
        given = leaves(case.tensors)
        got = call(case, given, first, count, impl=impl)
        assert_close(got, want, 1e-10)
        found = torch.autograd.grad((got * weight).sum(), list(given.values()), allow_unused=True)
        for name, grad, own in zip(given, found, expected, strict=True):
            if own is not None and float(own.abs().max()) > 1e-12:
                assert grad is not None, name
                assert float((grad - own).abs().max()) <= 1e-9 * max(1.0, float(own.abs().max()))
        if impl != "dense":
            _, found_lse = call(case, given, first, count, impl=impl, return_lse=True)
            empty = want_lse == -torch.inf
            assert torch.equal(found_lse == -torch.inf, empty)
            assert_close(
                found_lse.masked_fill(empty, 0.0), want_lse.masked_fill(empty, 0.0), 1e-10
            )


@pytest.mark.parametrize("number", range(0, COUNT, 4))
def test_native(number: int) -> None:
    """The kernel gives the same rows in float32, gradients included."""
    case, first, count = draw_case(number)
    if not native.ready() or "table" in case.tensors:
        pytest.skip("the kernel does not serve this call here")
    whole = leaves(case.tensors)
    want = formula(case, whole)[0][:, :, first : first + count]
    weight = torch.randn_like(want)
    expected = torch.autograd.grad((want * weight).sum(), [whole["q"], whole["k"], whole["v"]])
    given = leaves(case.tensors, torch.float32)
    got = call(case, given, first, count, impl="native")
    found = torch.autograd.grad((got * weight.float()).sum(), [given["q"], given["k"], given["v"]])
    for a, b in zip((got, *found), (want, *expected), strict=True):
        error = (a.double() - b).detach().square().mean().sqrt()
        assert error <= 2e-5 * max(float(b.detach().square().mean().sqrt()), 0.1)


PATTERNS = [
    P.SlidingWindow(9),
    P.SlidingWindow(30, causal=False),
    P.Blocks(10, True, 1),
    P.Neighborhood((16, 16), 5),
    P.Strided(8),
    Lagged(100),
    LaggedApart(100),
    P.SlidingWindow(9) & P.Blocks(20, True, 1),
]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_unread_keys_are_not_touched(pattern: P.Pattern) -> None:
    """Keys that no query of the part reads may be NaN."""
    first, count, length = 120, 30, 256
    q, k, v = (torch.randn(1, 2, n, 8) for n in (count, length, length))
    unread = ~pattern.mask(length)[first : first + count].any(0)
    want = foveal.attend(q, k, v, pattern, q_offset=first, impl="reference")
    k[:, :, unread] = v[:, :, unread] = torch.nan
    for impl in (None, "reference", "dense", "tiled"):
        assert_close(foveal.attend(q, k, v, pattern, q_offset=first, impl=impl), want, 1e-5)


@pytest.mark.parametrize("pattern", [P.SlidingWindow(9), P.Blocks(8, True), P.Neighborhood(16, 3)])
def test_a_part_keeps_the_contract(pattern: P.Pattern) -> None:
    """Mask, plan, counts and intervals of a part are its definition's; keys may miss in front."""
    for part in (P.Part(pattern, 70, 50), P.Part(pattern, 70, 50, 40), P.Part(pattern, 0, 0)):
        assert_pattern(part, 120)


def test_one_plan_for_every_offset() -> None:
    """Chunks far from the front read a window of one shape; their plan is built once."""
    q, k, v = (torch.randn(1, 1, n, 8) for n in (64, 4096, 4096))
    pattern = P.SlidingWindow(100)
    parts = [foveal.ops.offset.part_of(pattern, 99 + 31 * i, 64, 4096)[0] for i in range(100)]
    assert len(set(parts)) == 100
    assert len({foveal.ops.offset.brought_near(part, None) for part in parts}) == 1
    for first in (0, 500, 4032):
        want = foveal.attend(q, k, v, pattern, q_offset=first, impl="reference")
        assert_close(foveal.attend(q, k, v, pattern, q_offset=first, impl="tiled"), want, 1e-5)


def test_heads_with_layouts_of_their_own() -> None:
    """Each head reads by its own layout."""
    pattern = P.BlockSparse.bigbird(96, 8, num_heads=4, different_layout_per_head=True)
    q, k, v = (torch.randn(2, 4, 96, 8, dtype=torch.float64) for _ in range(3))
    want = foveal.attend(q, k, v, pattern, impl="reference")[:, :, 37:70]
    for impl in ("reference", "dense", "tiled", None):
        got = foveal.attend(q[:, :, 37:70], k, v, pattern, q_offset=37, impl=impl)
        assert_close(got, want, 1e-10)


def test_last() -> None:
    """-1 is n_keys - n_queries, for all of the queries too, and of a strided pattern its last."""
    q, k, v = (torch.randn(1, 2, n, 8) for n in (40, 40, 40))
    pattern = P.SlidingWindow(7)
    whole = foveal.attend(q, k, v, pattern)
    assert torch.equal(foveal.attend(q, k, v, pattern, q_offset=-1), whole)
    got = foveal.attend(q[:, :, 33:], k, v, pattern, q_offset=numpy.int64(-1))
    assert_close(got, whole[:, :, 33:], 1e-6)
    coarse = foveal.attend(q[:, :, :14], k, v, P.Shorten(3))
    got = foveal.attend(q[:, :, 12:14], k, v, P.Shorten(3), q_offset=-1)
    assert_close(got, coarse[:, :, 12:], 1e-6)


def test_dropout() -> None:
    """What is dropped is dropped, and the mean over draws is the plain result."""
    q, k, v = (torch.randn(1, 1, n, 4) for n in (5, 40, 40))
    for impl in ("tiled", "reference", "dense"):
        torch.manual_seed(0)
        options = {"q_offset": 30, "impl": impl}
        draws = [
            foveal.attend(q, k, v, P.SlidingWindow(9), dropout_p=0.5, **options)
            for _ in range(100)
        ]
        plain = foveal.attend(q, k, v, P.SlidingWindow(9), **options)
        assert not torch.equal(draws[0], draws[1])
        assert float((torch.stack(draws).mean(0) - plain).abs().max()) < 1.0


@pytest.mark.parametrize(
    ("offset", "words"),
    [
        (7, "at most 10"),
        (-2, "at least 0"),
        (-1000, "at least 0"),
        (True, "an int"),
        (1.0, "an int"),
        (numpy.float32(2), "an int"),
        (torch.tensor(2), "item"),
        ("3", "an int"),
        (None, "an int"),
    ],
)
def test_errors(offset: object, words: str) -> None:
    """An offset that is none names itself and what it may be."""
    q, k = torch.randn(1, 1, 4, 8), torch.randn(1, 1, 10, 8)
    with pytest.raises(ValueError, match=r"q_offset.*" + words):
        foveal.attend(q, k, k, P.SlidingWindow(3), q_offset=offset)


def test_more_errors() -> None:
    """More queries than keys have no last place; queries that are shared must come together."""
    q, k = torch.randn(1, 1, 11, 8), torch.randn(1, 1, 10, 8)
    with pytest.raises(ValueError, match="at most 10"):
        foveal.attend(q, k, k, P.SlidingWindow(3), q_offset=-1)
    with pytest.raises(ValueError, match="queries='fine'"):
        foveal.attend(q[:, :, :2], k, k, P.Pyramid(2), q_offset=3)
    bias = torch.zeros(1, 1, 2, 7)
    with pytest.raises(ValueError, match="bias must be floating and broadcast"):
        foveal.attend(q[:, :, :2], k, k, P.SlidingWindow(3), q_offset=3, bias=bias)


def test_compiled_and_exported() -> None:
    """One graph serves any lengths, compiled or exported, with an offset that is theirs."""

    class Tail(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor) -> Tensor:
            return foveal.attend(q, k, k, P.SlidingWindow(9), q_offset=-1)

    compiled = torch.compile(Tail(), fullgraph=True, dynamic=True, backend="eager")
    q, k = torch.randn(1, 2, 12, 8), torch.randn(1, 2, 70, 8)
    sizes = {"q": {2: torch.export.Dim("n", max=512)}, "k": {2: torch.export.Dim("m", max=512)}}
    exported = torch.export.export(Tail(), (q, k), dynamic_shapes=sizes).module()
    for n, m in ((12, 70), (5, 33)):
        q, k = torch.randn(1, 2, n, 8), torch.randn(1, 2, m, 8)
        want = foveal.attend(q, k, k, P.SlidingWindow(9), q_offset=-1, impl="reference")
        assert_close(exported(q, k), want, 1e-5)
        q.requires_grad_()
        (grad,) = torch.autograd.grad(compiled(q, k).square().sum(), q)
        (own,) = torch.autograd.grad(Tail()(q, k).square().sum(), q)
        assert_close(grad, own, 1e-4)


def test_explained() -> None:
    """explain() tells of the part: its pairs, and that a plan serves it."""
    found = foveal.explain(P.SlidingWindow(256), 16384, num_queries=64, q_offset=-1)
    assert found.pairs == 64 * 256
    assert found.visited < 40_000
    assert (found.num_queries, found.length) == (64, 16384)
    with pytest.raises(ValueError, match="q_offset"):
        foveal.explain(P.SlidingWindow(8), 100, num_queries=64, q_offset=37)


@pytest.mark.parametrize("shape", [(2, 40, 40), (3, 5, 40), (2, 5, 39), (1, 1, 1, 5, 40)])
def test_a_bias_of_a_wrong_shape_is_told_in_the_sizes_of_the_call(shape):
    """The keys that were cut off are nobody's business: the message has those that were given."""
    q, k = torch.randn(1, 2, 5, 8), torch.randn(1, 2, 40, 8)
    with pytest.raises(ValueError, match=r"\(batch, heads, n_queries, n_keys\) = \(1, 2, 5, 40\)"):
        foveal.attend(q, k, k, P.SlidingWindow(4), bias=torch.zeros(shape), q_offset=9)


@pytest.mark.parametrize(
    "pattern",
    [
        P.Documents((9, 0, 11)) & P.SlidingWindow(4),
        P.Packed(P.Blocks(4, causal=True), (9, 11)),
        P.Prefix(3) | P.SlidingWindow(2),
        P.Neighborhood((2, 2, 5), 3, stride=2),
        Lagged(4),
    ],
)
def test_fake_tensors(pattern):
    """In the mode of fake tensors nothing about a pattern is looked up that has numbers."""
    with FakeTensorMode():
        q, k = torch.randn(1, 2, 5, 8, requires_grad=True), torch.randn(1, 2, 20, 8)
        for q_offset in (-1, 3):
            out = foveal.attend(q, k, k, pattern, q_offset=q_offset)
            assert out.shape == (1, 2, 5, 8)
            out.sum().backward()


@pytest.mark.parametrize("impl", ["reference", "tiled", None])
@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize(
    "pattern",
    [
        P.BlockDiffusion(4, 100),
        P.BlockDiffusion(4, 100) | P.SlidingWindow(3),
        P.Documents((9, 0, 191)) | P.SlidingWindow(2),
        P.BlockDiffusion(4, 100) & P.Documents((150, 50)),
    ],
)
def test_patterns_of_one_length_stay_whole(pattern, count, impl):
    """Few queries, or none, of a pattern that has all of its keys or is refused."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 200, 8, dtype=torch.float64) for _ in "qkv")
    whole = foveal.attend(q, k, v, pattern, impl="reference")
    for first in (1, 130):
        part = q[:, :, first : first + count]
        found = foveal.attend(part, k, v, pattern, q_offset=first, impl=impl)
        assert_close(found, whole[:, :, first : first + count], 1e-10)
