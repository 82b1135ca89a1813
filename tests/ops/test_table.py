"""Tables of biases by the offset of a pair, and ALiBi, beside a formula that is written here."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import foveal
from foveal import TableBias, alibi, attend
from foveal import patterns as P
from foveal.testing import assert_close

Row = Callable[[int, int], int]
IMPLS = ["reference", "dense", "tiled", "native"]


@dataclass(frozen=True)
class Cubes(P.Pattern):
    """A stranger's: it says who reads whom, and nothing else."""

    def allows(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        return (q_idx * q_idx + k_idx * 3) % 5 < 2


def clipped(most: int) -> Row:
    return lambda i, j: min(max(i - j, -most), most) + most


def on_grid(width: int, up: int, across: int, step: int = 1) -> Row:
    """Offsets of rows and columns of pixels, in row-major order."""

    def row(i: int, j: int) -> int:
        y, x = (i // width - j // width) / step, (i % width - j % width) / step
        y, x = min(max(math.floor(y), -up), up), min(max(math.floor(x), -across), across)
        return (y + up) * (2 * across + 1) + x + across

    return row


def in_volume(sides: tuple[int, int, int], reach: tuple[int, int, int]) -> Row:
    """Offsets on three axes, in row-major order."""

    def place(i: int) -> tuple[int, int, int]:
        return i // (sides[1] * sides[2]), i // sides[2] % sides[1], i % sides[2]

    def row(i: int, j: int) -> int:
        found = 0
        for one, other, most in zip(place(i), place(j), reach, strict=True):
            found = found * (2 * most + 1) + min(max(one - other, -most), most) + most
        return found

    return row


def with_text(text: int, size: int, image: Row) -> Row:
    def row(i: int, j: int) -> int:
        if i < text:
            return size + 1
        return size if j < text else image(i - text, j - text)

    return row


def strided(width: int, stride: int, most: int) -> Row:
    """Queries at every other pixel of every other row."""
    across = -(-width // stride)
    grid = on_grid(width, most, most)
    return lambda i, j: grid(i // across * stride * width + i % across * stride, j)


SIZE = (9, 11)
CASES = {
    "window": (P.SlidingWindow(7), 67, 11, clipped(5)),
    "both ways": (P.SlidingWindow(20, causal=False), 131, 39, clipped(19)),
    "one": (P.Full(causal=True), 1, 61, clipped(30)),
    "none": (P.SlidingWindow(3), 0, 5, clipped(2)),
    "full": (P.Full(causal=True), 97, 61, clipped(30)),
    "union": (P.SlidingWindow(4) | P.Strided(9), 67, 7, clipped(3)),
    "stranger": (Cubes(), 41, 21, clipped(10)),
    "heads": (P.BlockSparse(torch.arange(64).view(4, 4, 4) % 3 < 2, 9), 35, 15, clipped(7)),
    "neighbours": (P.Neighborhood(SIZE, (5, 3), border="shift"), 99, 45, on_grid(11, 4, 2)),
    "dilated": (P.Neighborhood(SIZE, 3, dilation=2), 99, 25, on_grid(11, 2, 2, 2)),
    "raster": (P.Neighborhood(SIZE, 5, causal="raster"), 80, 81, on_grid(11, 4, 4)),
    "wrap": (
        P.Neighborhood(SIZE, 5, causal="raster", border="wrap"),
        99,
        17 * 21,
        on_grid(11, 8, 10),
    ),
    "halo": (P.Halo(SIZE, 4, 1), 99, 81, on_grid(11, 4, 4)),
    "strided halo": (P.Halo(SIZE, 4, 1, 2), 99, 81, strided(11, 2, 4)),
    "swin": (P.Halo(SIZE, 4, 0), 99, 49, on_grid(11, 3, 3)),
    "axial": (P.Axial(SIZE, "row"), 99, 21, on_grid(11, 0, 10)),
    "cut": (P.Neighborhood(SIZE, 5) & P.Full(causal=True), 99, 81, on_grid(11, 4, 4)),
    "cross": (P.Neighborhood(SIZE, 5) | P.Axial(SIZE), 99, 189, on_grid(11, 4, 10)),
    "text": (
        P.TextImage(7, P.Neighborhood(SIZE, 5, causal="raster")),
        106,
        83,
        with_text(7, 81, on_grid(11, 4, 4)),
    ),
    "windows of a volume": (
        P.Halo((3, 5, 5), (2, 3, 3), 0),
        75,
        75,
        in_volume((3, 5, 5), (1, 2, 2)),
    ),
    "volume": (P.Neighborhood((4, 3, 6), (3, 2, 5)), 72, 135, in_volume((4, 3, 6), (2, 1, 4))),
    "axis": (P.Neighborhood((40,), 7, border="shift"), 40, 13, clipped(6)),
    "text in line": (P.TextImage(7, P.SlidingWindow(9)), 50, 9, clipped(4)),
}


def tensors(pattern: P.Pattern, n: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(n)
    sizes = ((2, 4, pattern.num_queries(n), 8), (2, 2, n, 8), (2, 2, n, 6))
    return [torch.randn(size, dtype=dtype, requires_grad=True) for size in sizes]


def formula(
    q: Tensor, k: Tensor, v: Tensor, pattern: P.Pattern, added: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Softmax attention with `added` (heads or 1, n_queries, n_keys) on its logits."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    logits = q @ k.mT / math.sqrt(q.shape[-1]) + added
    allowed = pattern.mask(q.shape[2], k.shape[2])
    if mask is not None:
        allowed = allowed & mask[:, None, None]
    logits = logits.masked_fill(~allowed, -torch.inf)
    dead = ~allowed.any(-1, keepdim=True).expand(*logits.shape[:3], 1)
    weights = logits.masked_fill(dead, 0.0).softmax(-1).masked_fill(dead, 0.0)
    return weights @ v, logits.logsumexp(-1)


def rows_of(row: Row, n: int, m: int) -> Tensor:
    return torch.tensor([[row(i, j) for j in range(m)] for i in range(n)]).reshape(n, m).long()


def gradients(out: Tensor, given: list[Tensor]) -> tuple[Tensor, ...]:
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return torch.autograd.grad((out * weight).sum(), given, materialize_grads=True)


def skip_native(impl: str) -> None:
    if impl == "native" and (reason := foveal.ops.native.why_not("cpu", torch.float32)):
        pytest.skip(reason)


# -- tables -------------------------------------------------------------------------------------


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", CASES)
def test_rows_by_offset(name, impl):
    """Outputs and all gradients, the table's too, are those of a formula with a row a pair."""
    skip_native(impl)
    pattern, n, size, row = CASES[name]
    given = tensors(pattern, n)
    given.append(torch.randn(size, 1 if n % 3 else 4, dtype=torch.float64, requires_grad=True))
    mask = torch.ones(2, n, dtype=torch.bool)
    mask[1, ::3] = False
    added = given[3][rows_of(row, given[0].shape[2], n)].permute(2, 0, 1)
    want, lse = formula(*given[:3], pattern, added, mask)
    dtype, close = (torch.float32, 2e-5) if impl == "native" else (torch.float64, 1e-10)
    own = [x.detach().to(dtype).requires_grad_() for x in given]
    options = {"bias": TableBias(own[3]), "key_mask": mask, "impl": impl}
    got = attend(*own[:3], pattern, **options)
    assert_close(got, want, close)
    for one, two in zip(gradients(got, own), gradients(want, given), strict=True):
        assert_close(one, two, 10 * close)
    if impl != "dense":
        assert_close(attend(*own[:3], pattern, **options, return_lse=True)[1], lse, close)


T5_ROWS = {  # 32 buckets, farthest 128: key - query -> row, worked out by hand
    True: {0: 0, -1: 1, 1: 17, -7: 7, -8: 8, -11: 8, -12: 9, -16: 10, 16: 26, -63: 13, -64: 14},
    False: {0: 0, 5: 0, -1: 1, -15: 15, -16: 16, -18: 16, -19: 17, -60: 26, -113: 31, -4000: 31},
}


@pytest.mark.parametrize("bidirectional", [True, False])
def test_t5_buckets(bidirectional):
    """Short distances have rows of their own, long ones share them by logarithm."""
    table = torch.arange(32.0)[:, None]
    bias = TableBias.t5(table, bidirectional=bidirectional)
    for offset, row in T5_ROWS[bidirectional].items():
        query = torch.tensor(5000)
        assert int(bias.at(P.Full(), query, query + offset)) == row, offset


@pytest.mark.parametrize("impl", IMPLS)
def test_t5_attends(impl):
    """Buckets reach every implementation; those of a decoder have no rows for the future."""
    skip_native(impl)
    pattern, n = P.SlidingWindow(90), 131
    q, k, v = (x.detach().float() for x in tensors(pattern, n))
    table = torch.randn(16, 4)
    offsets = torch.arange(n)[:, None] - torch.arange(n)
    far = 8 + (torch.log(offsets.clamp(min=8).float() / 8) / math.log(40 / 8) * 8).long()
    rows = torch.where(offsets < 8, offsets.clamp(min=0), far.clamp(max=15))
    want = formula(q.double(), k.double(), v.double(), pattern, table[rows].permute(2, 0, 1))[0]
    bias = TableBias.t5(table, bidirectional=False, max_distance=40)
    assert_close(attend(q, k, v, pattern, bias=bias, impl=impl), want, 2e-5)


def test_tables_as_others_lay_them_out():
    """Heads first, as NAT's (heads, 2k - 1, 2k - 1), is the same table as rows first."""
    pattern = P.Neighborhood(SIZE, 3)
    q, k, v = tensors(pattern, 99)
    table = torch.randn(4, 5, 5, dtype=torch.float64)
    want = attend(q, k, v, pattern, bias=TableBias(table.flatten(1).T))
    assert torch.equal(attend(q, k, v, pattern, bias=TableBias(table)), want)
    assert torch.equal(attend(q, k, v, pattern, bias=TableBias(table.flatten(1))), want)


@pytest.mark.parametrize("impl", ["reference", "dense", "tiled"])
def test_rows_of_ones_own(impl):
    """A function of both positions picks the row; the kernel says that it has no such rows."""
    q, k, v = tensors(P.Full(), 23)
    table = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    bias = TableBias(table, rows=lambda q_idx, k_idx: (q_idx + k_idx) % 3)
    want, _ = formula(
        q, k, v, P.Full(), table[rows_of(lambda i, j: (i + j) % 3, 23, 23)].movedim(-1, 0)
    )
    got = attend(q, k, v, P.Full(), bias=bias, impl=impl)
    assert_close(got, want, 1e-10)
    assert_close(gradients(got, [table])[0], gradients(want, [table])[0], 1e-9)
    if not foveal.ops.native.why_not("cpu", torch.float32):
        with pytest.raises(ValueError, match="a row an offset"):
            attend(q.float(), k.float(), v.float(), P.Full(), bias=bias, impl="native")


@pytest.mark.parametrize("impl", ["tiled", "native"])
@pytest.mark.parametrize("of_table", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_precisions_mix(dtype, of_table, impl):
    """A table has its own dtype, and its gradient too."""
    skip_native(impl)
    pattern = P.SlidingWindow(9)
    q, k, v = (x.detach().to(dtype) for x in tensors(pattern, 50))
    table = torch.randn(9, 4).to(of_table).requires_grad_()
    got = attend(q, k, v, pattern, bias=TableBias(table), impl=impl)
    exact = table.detach().double().requires_grad_()
    added = exact[rows_of(clipped(4), 50, 50)].permute(2, 0, 1)
    want, _ = formula(q.double(), k.double(), v.double(), pattern, added)
    close = 2e-5 if dtype == torch.float32 else 1e-2
    assert got.dtype == dtype
    assert_close(got, want, close)
    (grad,) = gradients(got.double(), [table])
    assert grad.dtype == of_table
    assert_close(grad, gradients(want, [exact])[0], max(close, 1e-2))


@pytest.mark.parametrize("q_offset", [0, 20, -1])
@pytest.mark.parametrize("name", ["window", "raster", "text", "halo"])
def test_queries_at_an_offset(name, q_offset):
    """Offsets are those of tokens, wherever the queries begin; ALiBi's distances too."""
    pattern, n, size, _ = CASES[name]
    q, k, v = (x.detach() for x in tensors(pattern, n))
    first = n - 13 if q_offset == -1 else q_offset
    for bias in (TableBias(torch.randn(size, 4, dtype=torch.float64)), alibi(4)):
        want = attend(q, k, v, pattern, bias=bias, impl="reference")[:, :, first : first + 13]
        part = q[:, :, first : first + 13]
        for impl in ("reference", "dense", "tiled", None):
            got = attend(part, k, v, pattern, bias=bias, q_offset=q_offset, impl=impl)
            assert_close(got, want, 1e-10)


def test_gradient_is_the_same_with_any_number_of_threads():
    """Sums of a table's gradient run in one order; so do they in a second run."""
    skip_native("native")
    q, k, v = (x.detach().float() for x in tensors(P.SlidingWindow(30), 300))
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        table = torch.linspace(-1, 1, 4 * 59).view(59, 4).requires_grad_()
        out = attend(q, k, v, P.SlidingWindow(30), bias=TableBias(table), impl="native")
        found += gradients(out, [table])
    torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[1], found[2])


def test_derivatives_of_every_kind():
    """Second derivatives and torch.func reach the table."""
    q, k, v = (x.detach()[:1, :2, :9] for x in tensors(P.SlidingWindow(4), 9))
    table = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor) -> Tensor:
        return attend(q, k, v, P.SlidingWindow(4), bias=TableBias(x), impl="tiled")

    assert torch.autograd.gradgradcheck(run, (table,))
    step = torch.randn(5, 2, dtype=torch.float64)
    along = torch.func.jvp(run, (table.detach(),), (step,))[1]
    rows = torch.func.jacrev(run)(table.detach())
    assert_close(along, (rows * step).sum((-2, -1)), 1e-9)


class Biased(torch.nn.Module):
    """A learned table, and learned slopes, over a pattern."""

    def __init__(self, pattern: P.Pattern, size: int) -> None:
        super().__init__()
        self.pattern = pattern
        self.table = torch.nn.Parameter(torch.randn(size, 4, dtype=torch.float64))
        self.slopes = torch.nn.Parameter(torch.rand(4, dtype=torch.float64))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        one = attend(q, k, v, self.pattern, bias=TableBias(self.table))
        return one + attend(q, k, v, self.pattern, bias=alibi(4, self.slopes))


class AlsoFixed(Biased):
    """And fixed slopes."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return super().forward(q, k, v) + attend(q, k, v, self.pattern, bias=alibi(4))


@pytest.mark.parametrize("name", ["window", "raster"])
def test_in_graphs(name):
    """One graph compiles, and an exported program gives the same; gradients go through both."""
    pattern, n, size, _ = CASES[name]
    model, given = AlsoFixed(pattern, size), tensors(pattern, n)
    want = model(*given)
    got = torch.compile(model, fullgraph=True, backend="aot_eager")(*given)
    assert_close(got, want, 1e-10)
    weights = list(model.parameters())
    for one, two in zip(gradients(got, weights), gradients(want, weights), strict=True):
        assert_close(one, two, 1e-9)
    program = torch.export.export(model, tuple(x.detach() for x in given))
    assert_close(program.module()(*given), want, 1e-10)


CLIP = (2, 3, 4)


@pytest.mark.parametrize(
    "pattern",
    [
        P.Neighborhood(CLIP, 2, 1, (True, False, False), "shift"),
        P.Halo(CLIP, 2, 1),
        P.Axial(CLIP, 0),
        P.Blocks((1, 2, 2), size=CLIP),
        P.Packed(P.SlidingWindow(5), (11, 0, 13)),
        P.Documents((11, 13)) & P.SlidingWindow(5),
    ],
    ids=repr,
)
def test_clips_and_documents_in_a_graph(pattern):
    """Their sizes, rows and distances are followed by the compiler; fixed slopes: above."""
    model, given = Biased(pattern, pattern.bias_size or 9), tensors(pattern, 24)
    got = torch.compile(model, fullgraph=True, backend="eager")(*given)
    assert_close(got, model(*given), 1e-10)


def test_tables_that_do_not_fit():
    """Wrong rows, heads, numbers, devices and rules are named with what was expected."""
    q, k, v = tensors(P.Full(), 99)
    near = P.Neighborhood(SIZE, 5)

    def message(table: object, pattern: P.Pattern = near, **options: object) -> str:
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            attend(q, k, v, pattern, bias=TableBias(table, **options))  # type: ignore[arg-type]
        return str(caught.value)

    assert "(81, 4 or 1)" in message(torch.zeros(80, 4))
    assert "(81, 4 or 1)" in message(torch.zeros(81, 3))
    assert "2 m + 1" in message(torch.zeros(8, 4), P.SlidingWindow(9))
    assert "floating" in message(torch.zeros(81, 4, dtype=torch.long))
    assert "floating" in message([[0.0]])
    bad = torch.zeros(81, 4)
    bad[3, 1], bad[5, 2] = torch.nan, -torch.inf
    assert "2 of 324" in message(bad)
    assert "rules that differ" in message(torch.zeros(81, 4), near | P.Neighborhood((11, 9), 5))
    with pytest.raises(ValueError, match="buckets"):
        attend(q, k, v, P.Full(), bias=TableBias.t5(torch.zeros(31, 4)))
    with pytest.raises(ValueError, match="max_distance"):
        attend(q, k, v, P.Full(), bias=TableBias.t5(torch.zeros(32, 4), max_distance=8))
    down = P.Halo(SIZE, 4, 1, 2)
    with pytest.raises(ValueError, match="strides its queries"):
        attend(q[:, :, :30], k, v, down, bias=alibi(4))
    with pytest.raises(ValueError, match="4 heads"):
        attend(q, k, v, P.Full(), bias=alibi(3))
    with pytest.raises(ValueError, match="slopes"):
        alibi(3, torch.zeros(2))
    with pytest.raises(ValueError, match="heads"):
        alibi(0)
    with pytest.raises(ValueError, match="alibi"):
        attend(q, k, v, P.Pyramid(4), bias=alibi(4))


def test_explained():
    """explain() knows tables: what serves them, and what does not."""
    said = foveal.explain(P.SlidingWindow(64), 4096, table_bias=True)
    assert said.impl in ("native", "tiled")
    halo = foveal.explain(P.Halo(64, 8, 2), 4096, table_bias=True)
    assert "no bias but a WindowBias" in halo.alternatives["triton"]
    pooled = foveal.explain(P.Pyramid(16), 4096, table_bias=True)
    assert "a row an offset" in pooled.alternatives["native"]


# -- ALiBi --------------------------------------------------------------------------------------


def test_slopes():
    """Those of the authors' code, for powers of two and in between."""
    assert alibi(8).slopes.tolist() == [2.0**-i for i in range(1, 9)]
    between = [2.0 ** -(i + 0.5) for i in range(4)]
    assert alibi(12).slopes.tolist() == [2.0**-i for i in range(1, 9)] + between
    assert alibi(1).slopes.tolist() == [2.0**-8]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(
    "pattern",
    [
        P.Full(causal=True),
        P.SlidingWindow(40, causal=False),
        P.Strided(7),
        P.Neighborhood((9, 11), 3),
        P.TextImage(9, P.Axial((9, 10), causal=True)),
        P.BlockSparse(torch.arange(64).view(4, 4, 4) % 3 < 2, 25),
    ],
    ids=lambda p: type(p).__name__,
)
def test_alibi(pattern, impl):
    """Minus slope times distance on every pair; learned slopes get their gradient."""
    skip_native(impl)
    given = [*tensors(pattern, 99), torch.rand(4, dtype=torch.float64, requires_grad=True)]
    far = (torch.arange(99)[:, None] - torch.arange(99)).abs()
    want, lse = formula(*given[:3], pattern, -given[3][:, None, None] * far)
    dtype, close = (torch.float32, 2e-5) if impl == "native" else (torch.float64, 1e-10)
    own = [x.detach().to(dtype).requires_grad_() for x in given]
    options = {"bias": alibi(4, own[3]), "impl": impl}
    got = attend(*own[:3], pattern, **options)
    assert_close(got, want, close)
    for one, two in zip(gradients(got, own), gradients(want, given), strict=True):
        assert_close(one, two, 10 * close)
    if impl != "dense":
        assert_close(attend(*own[:3], pattern, **options, return_lse=True)[1], lse, close)


@pytest.mark.parametrize("impl", ["tiled", "native"])
def test_far_from_the_first_token(impl):
    """At 65,536 tokens no digit is lost: the log-sum-exp is that of logits near zero."""
    skip_native(impl)
    torch.manual_seed(0)
    n, window = 65536, 65
    q, k, v = (torch.randn(1, 2, n, 4) for _ in range(3))
    out, lse = attend(q, k, v, P.SlidingWindow(window), bias=alibi(2), impl=impl, return_lse=True)
    last = slice(n - 2 * window, n)
    far = (torch.arange(2 * window)[:, None] - torch.arange(2 * window)).abs()
    added = -torch.tensor([2.0**-4, 2.0**-8], dtype=torch.float64)[:, None, None] * far
    parts = [x[:, :, last].double() for x in (q, k, v)]
    want, want_lse = formula(*parts, P.SlidingWindow(window), added)
    assert_close(out[:, :, -window:], want[:, :, -window:], 2e-6)
    assert_close(lse[:, :, -window:], want_lse[:, :, -window:], 2e-6)
