"""Attention in plain operators: the numbers of the definition, for every form that it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import foveal
from foveal import TableBias, WindowBias
from foveal import patterns as P
from foveal.ops.lowered import NotLoweredError, attend_lowered, lowering
from foveal.testing import assert_close, dense_attention

LENGTH = 200
FORMS = {
    "dense": P.Full(),
    "causal": P.Full(causal=True),
    "band": P.SlidingWindow(9),
    "band on both sides": P.SlidingWindow(40, causal=False),
    "band of blocks": P.Blocks(16, causal=True, lookback=1),
    "period": P.Blocks(24) | P.SlidingWindow(5),
    "tiles of a union": P.SlidingWindow(9) | P.Prefix(3),
    "tiles along the sequence": P.Fixed(16, 4),
    "tiles of an image": P.Neighborhood((20, 10), 3),
    "tiles of blocks": P.Halo((20, 10), 4, 1),
    "tiles of columns": P.Axial((20, 10), "column"),
    "tiles behind a text": P.TextImage(100, P.Neighborhood(10, 3, causal="raster")),
    "levels, means as queries": P.Pyramid(8),
    "levels, causal": P.Pyramid(8, causal=True),
    "levels, first of each as query": P.Pyramid(4, causal=True, queries="coarse"),
    "levels of siblings": P.Pyramid(4, neighbors="sibling"),
}


def tensors(length: int = LENGTH, keys: int | None = None, heads: int = 4) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    kept = {"dtype": torch.float64}
    keys = length if keys is None else keys
    q = torch.randn(2, heads, length, 8, **kept)
    return q, torch.randn(2, 2, keys, 8, **kept), torch.randn(2, 2, keys, 6, **kept)


def compare(pattern: P.Pattern, given: tuple[Tensor, ...], **options: Any) -> None:
    """Both results, with and without the log-sum-exp, beside the textbook's."""
    if pattern.pools:
        want = foveal.attend(*given, pattern, impl="reference", return_lse=True, **options)
    else:
        want = dense_attention(*given, pattern, **options)
    with lowering():
        out, lse = attend_lowered(*given, pattern, return_lse=True, **options)
        alone, none = attend_lowered(*given, pattern, **options)
    assert none is None
    for one in (out, alone):
        assert_close(one, want[0], rtol=1e-9)
    finite = want[1] > -torch.inf
    assert torch.equal(lse > -torch.inf, finite)
    assert_close(lse[finite], want[1][finite], rtol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_definition(form: str) -> None:
    """Grouped heads; then a mask with rows that read nothing, sinks and a cap; each to 1e-9."""
    given, pattern = tensors(), FORMS[form]
    compare(pattern, given)
    mask = torch.rand(2, LENGTH) > 0.3
    mask[1] = False
    mask[1, 5] = True
    sinks = torch.randn(4, dtype=torch.float64)
    compare(pattern, given, key_mask=mask, sinks=sinks, softcap=3.0)
    compare(pattern, given, key_mask=mask, sinks=sinks)


@pytest.mark.parametrize("form", ["dense", "band", "tiles of a union", "tiles of blocks"])
def test_what_no_query_may_read_reaches_nothing(form: str) -> None:
    """NaN behind a key mask; rows without a key, by a mask or a bias of -inf, give zeros."""
    q, k, v = tensors()
    bias = torch.zeros(1, 1, LENGTH, LENGTH, dtype=torch.float64)
    bias[:, :, 7] = -torch.inf
    with lowering():
        out, _ = attend_lowered(q, k, v, FORMS[form], bias=bias)
    assert (out[:, :, 7] == 0).all()
    assert out.isfinite().all()
    mask = torch.ones(2, LENGTH, dtype=torch.bool)
    mask[0, 50:], mask[1] = False, False
    for x in (k, v):
        x[0, :, 50:], x[1] = torch.nan, torch.nan
    with lowering():
        out, _ = attend_lowered(q, k, v, FORMS[form], key_mask=mask)
    assert out.isfinite().all()
    assert (out[1] == 0).all()


@dataclass(frozen=True)
class Even(P.Pattern):
    """Every other key of the last sixteen."""

    period = 2

    def allows(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        distance = q_idx - k_idx
        return (distance >= 0) & (distance < 16) & (k_idx % 2 == 0)


HOLES = torch.rand(12, 12, generator=torch.Generator().manual_seed(0)) < 0.6
HOLES[:, 4] = HOLES[4] = False
UNREAD = {
    "dense": (P.Full(causal=True), 60, 100, slice(60, None)),
    "window": (P.SlidingWindow(9), 60, 100, slice(60, None)),
    "levels": (P.Pyramid(4, causal=True, queries="fine"), 60, 100, slice(60, None)),
    "period": (Even(), 400, 400, slice(1, None, 2)),
    "blocks": (P.BlockSparse(HOLES, 16), 192, 192, slice(64, 80)),
    "blocks of heads": (P.BlockSparse(HOLES.expand(4, -1, -1), 16), 192, 192, slice(64, 80)),
}


@pytest.mark.parametrize("form", UNREAD)
def test_keys_that_the_pattern_leaves_out_reach_nothing(form: str) -> None:
    """NaN there changes nothing; a query without keys has its sink for a log-sum-exp."""
    pattern, queries, keys, where = UNREAD[form]
    q, k, v = tensors(queries, keys)
    sinks = torch.randn(4, dtype=torch.float64)
    compare(pattern, (q, k, v), sinks=sinks)
    with lowering():
        want = attend_lowered(q, k, v, pattern, sinks=sinks)[0]
        k[:, :, where], v[:, :, where] = torch.nan, torch.inf
        assert torch.equal(attend_lowered(q, k, v, pattern, sinks=sinks)[0], want)


def test_biases_of_every_kind() -> None:
    """Tables, slopes, tensors and windows are added to the logits of gathered pairs."""
    given = tensors()
    rand = torch.randn(2, 4, LENGTH, LENGTH, dtype=torch.float64)
    rand[:, :, 7, 3:] = -torch.inf  # pairs that do not exist
    for form in ("band", "tiles of a union"):
        pattern = FORMS[form]
        compare(pattern, given, bias=rand)
        compare(pattern, given, bias=rand[:1, :, 3:4])
        table = TableBias.t5(torch.randn(32, 4, dtype=torch.float64))
        for bias in (table, foveal.alibi(4)):
            want = foveal.attend(*given, pattern, bias=bias, impl="reference")
            with lowering():
                out, _ = attend_lowered(*given, pattern, bias=bias)
            assert_close(out, want, rtol=1e-6)
    halo = FORMS["tiles of blocks"]
    window = WindowBias(*(torch.randn(2, 4, LENGTH, 6, dtype=torch.float64) for _ in "hw"))
    want = foveal.attend(*given, halo, bias=window, impl="reference")
    with lowering():
        assert_close(attend_lowered(*given, halo, bias=window)[0], want, rtol=1e-9)
    for form in ("levels, means as queries", "levels, causal"):
        compare(FORMS[form], given, bias=TableBias(torch.randn(31, 4, dtype=torch.float64)))


def test_heads_with_layouts_and_other_numbers_of_queries() -> None:
    """Heads of their own; queries that are fewer than keys, or of another sequence."""
    layout = torch.rand(4, 12, 12) < 0.3
    layout[:, range(12), range(12)] = True
    compare(P.BlockSparse(layout, 16), tensors(192), sinks=torch.randn(4).double())
    compare(P.Full(), tensors(100, 60))
    compare(P.Shorten(4), tensors(50, 200))
    compare(P.Pyramid(4, queries="fine"), tensors(100, 60))
    compare(P.Halo((20, 10), 4, 2, query_stride=2), tensors(50, 200))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_close_as_its_digits(dtype: torch.dtype) -> None:
    """Results come in the dtype of the queries, sums in float32."""
    given = [x.to(dtype) for x in tensors()]
    for form in ("band", "tiles of a union", "levels, causal", "levels, means as queries"):
        want = foveal.attend(*(x.float() for x in given), FORMS[form], impl="reference")
        with lowering():
            out, _ = attend_lowered(*given, FORMS[form])
        assert out.dtype == dtype
        assert_close(out.float(), want, rtol=2e-2)


class Layer(torch.nn.Module):
    """Attention to itself, to be traced."""

    def __init__(self, pattern: P.Pattern, **options: Any) -> None:
        super().__init__()
        self.pattern, self.options = pattern, options

    def forward(self, x: Tensor) -> Tensor:
        return foveal.attend(x, x, x, self.pattern, **self.options)


def test_layouts_of_heads_are_traced() -> None:
    """Patterns that hold tensors are taken apart outside of the trace."""
    layout = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.4
    blocks = P.BlockSparse(layout, 8)
    for pattern in (blocks, blocks | P.SlidingWindow(3), blocks & P.Full(causal=True)):
        x = torch.randn(1, 2, 32, 8)
        with lowering():
            program = torch.export.export(Layer(pattern), (x,))
        assert_close(program.module()(x), dense_attention(x, x, x, pattern)[0])


DOCUMENTS = P.Documents((30, 50))
LENGTHS = {
    "a window": (P.SlidingWindow(9), 2, None),
    "a window in documents": (DOCUMENTS & P.SlidingWindow(9), 80, 400),
    "a window or documents": (P.SlidingWindow(9) | DOCUMENTS, 80, None),
}


def traced(pattern: P.Pattern, least: int, most: int | None) -> torch.export.ExportedProgram:
    """Attention to itself of one sequence, over lengths between."""
    length = torch.export.Dim("length", min=least, max=most)
    with lowering():
        return torch.export.export(
            Layer(pattern), (torch.randn(1, 2, 100, 8),), dynamic_shapes=({2: length},)
        )


@pytest.mark.parametrize("name", LENGTHS)
def test_lengths_that_a_pattern_takes_are_symbols(name: str) -> None:
    """A module of one's own; what a rule looks things up in is made outside of the trace."""
    pattern, least, most = LENGTHS[name]
    program = traced(pattern, least, most)
    for length in (least, 81, most or 333):
        x = torch.randn(1, 2, length, 8)
        assert_close(program.module()(x), dense_attention(x, x, x, pattern)[0])


@pytest.mark.parametrize(
    ("pattern", "least", "most", "words"),
    [
        (DOCUMENTS, 2, 400, "over 2 to 400 tokens .*got 2 tokens for 2 documents of 80"),
        (DOCUMENTS & P.SlidingWindow(9), 79, None, "over 79 to any tokens"),
        (P.Packed(P.SlidingWindow(9), (30, 50)), 80, 400, "as long as its 2 documents of 80"),
        (P.Neighborhood(10, 3), 2, 101, r"at most height \* width = 100"),
        (P.NextScale((1, 2, 4, 9)), 2, None, r"bound the length when tracing: Dim\("),
        (P.BlockSparse(HOLES, 16), 2, 400, "num_blocks"),
    ],
)
def test_lengths_that_a_pattern_refuses_are_no_program(
    pattern: P.Pattern, least: int, most: int | None, words: str
) -> None:
    """Such as would compute what attend() refuses, or end in an error of torch's."""
    with pytest.raises(NotLoweredError, match=words):
        traced(pattern, least, most)


def test_what_has_no_form_is_refused_by_name() -> None:
    """Keys that are pooled by a rule of somebody else, biases of single keys, dropout; and numbers
    that attend() refuses everywhere."""

    @dataclass(frozen=True)
    class Mine(P.Pattern):
        pools = True

        def allows(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
            return k_idx <= q_idx

    with lowering(), pytest.raises(NotLoweredError, match="Mine"):
        attend_lowered(*tensors(), Mine())
    with (
        lowering(),
        pytest.raises(NotLoweredError, match="takes a TableBias or none, got bias=Al"),
    ):
        attend_lowered(*tensors(), P.Pyramid(4), bias=foveal.alibi(4))
    with lowering(), pytest.raises(NotLoweredError, match=r"dropout_p=0.1 draws at random"):
        attend_lowered(*tensors(), P.SlidingWindow(4), dropout_p=0.1)
    x = torch.randn(1, 2, 12, 8)
    for options, words in (
        ({"dropout_p": 0.5}, "dropout_p=0.5 draws at random"),
        ({"softcap": -1.0}, "softcap must be"),
        ({"softcap": 0.0}, "softcap must be"),
        ({"scale": float("nan")}, "scale must be a number"),
    ):
        with lowering(), pytest.raises((NotLoweredError, ValueError), match=words):
            torch.export.export(Layer(P.SlidingWindow(4), **options), (x,))
