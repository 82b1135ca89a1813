"""attend_varlen() against each sequence alone."""

import pytest
import torch
from torch import Tensor

import foveal
from foveal import patterns as P
from foveal.ops import native
from foveal.testing import assert_close

QUERIES = (5, 0, 97, 1, 20, 16)
KEYS = (9, 3, 97, 1, 64, 16)
PATTERNS = [
    P.Full(),
    P.Full(causal=True),
    P.SlidingWindow(7),
    P.Blocks(8, causal=True, lookback=1),
    P.Strided(5),
    P.Fixed(8, 2),
    P.SlidingWindow(3) | P.Strided(9),
    P.Pyramid(4, causal=True, queries="fine"),
]
IMPLS = [None, "tiled"]
if native.why_not("cpu", torch.float32) is None:
    IMPLS.append("native")


def borders(lengths, dtype=torch.int32) -> Tensor:
    return torch.tensor((0, *lengths)).cumsum(0).to(dtype)


def packed(dtype=torch.float64, queries=QUERIES, keys=KEYS) -> list[Tensor]:
    torch.manual_seed(1)
    shapes = ((sum(queries), 4, 16), (sum(keys), 2, 16), (sum(keys), 2, 24))
    return [torch.randn(s, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def alone(q, k, v, pattern, queries=QUERIES, keys=KEYS, **options):
    """Each sequence by the definition of attention, in the last rows of its mask."""
    outs = []
    for one in zip(q.split(queries), k.split(keys), v.split(keys), strict=True):
        row = [x.transpose(0, 1)[None] for x in one]
        n, m = len(one[0]), len(one[1])
        padded = torch.nn.functional.pad(row[0], (0, 0, m - n, 0))
        out = foveal.attend(padded, *row[1:], pattern, impl="reference", **options)
        outs.append(out[0, :, m - n :].transpose(0, 1))
    return torch.cat(outs)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_as_each_alone(pattern, impl):
    """Outputs and gradients; queries that are fewer than keys are the last ones."""
    exact = packed()
    sinks = torch.randn(4, dtype=torch.float64, requires_grad=True)
    options = {"softcap": 5.0, "scale": 0.4}
    want = alone(*exact, pattern, sinks=sinks, **options)
    noise = torch.randn_like(want)
    want_grads = torch.autograd.grad((want * noise).sum(), [*exact, sinks])
    dtype = torch.float32 if impl == "native" else torch.float64
    given = [x.detach().to(dtype).requires_grad_() for x in exact]
    out, lse = foveal.attend_varlen(
        *given,
        borders(QUERIES),
        borders(KEYS, torch.int64),
        pattern,
        sinks=sinks,
        impl=impl,
        return_lse=True,
        **options,
    )
    assert lse.shape == (4, sum(QUERIES))
    grads = torch.autograd.grad((out * noise).sum(), [*given, sinks])
    limit = 2e-5 if impl == "native" else 1e-10
    for got, wanted in zip((out, *grads), (want, *want_grads), strict=True):
        error = (got.double() - wanted).pow(2).mean().sqrt() / wanted.pow(2).mean().sqrt()
        assert error < limit


def test_images_side_by_side():
    """Images of one size are sequences like any other."""
    q, k, v = packed(queries=(30, 30), keys=(30, 30))
    both = borders((30, 30))
    for pattern in (P.Neighborhood((5, 6), 3), P.Halo((5, 6), 2, 1), P.Axial((5, 6))):
        out = foveal.attend_varlen(q, k, v, both, both, pattern)
        assert_close(out, alone(q, k, v, pattern, (30, 30), (30, 30)))
    with pytest.raises(ValueError, match="length"):
        foveal.attend_varlen(q, k, v, borders((29, 31)), borders((29, 31)), P.Halo((5, 6), 2, 1))


def test_reads_in_place():
    """Interleaved q, k and v are read where they lie, and come back side by side."""
    x = torch.randn(60, 3, 2, 16)
    q, k, v = x.unbind(1)
    some = borders((20, 40))
    out = foveal.attend_varlen(q, k, v, some, some, P.SlidingWindow(9))
    assert out.is_contiguous()
    apart = [one.contiguous() for one in (q, k, v)]
    assert torch.equal(out, foveal.attend_varlen(*apart, some, some, P.SlidingWindow(9)))


def test_more_queries_than_keys():
    """The first stand before all keys and read nothing of a causal pattern."""
    q, k, v = packed(queries=(5, 3), keys=(2, 0))
    out = foveal.attend_varlen(q, k, v, [0, 5, 8], [0, 2, 2], P.Full(causal=True))
    assert bool((out[:3] == 0).all())
    assert bool((out[5:] == 0).all())
    assert_close(out[3:5], alone(q[3:5], k, v, P.Full(causal=True), (2,), (2,)))
    with pytest.raises(ValueError, match="has 2 queries for the 2 keys of a document, got 5"):
        foveal.attend_varlen(q, k, v, [0, 5, 8], [0, 2, 2], P.Blocks(4))


@pytest.mark.parametrize("pattern", [P.SlidingWindow(4), P.Pyramid(4)], ids=repr)
def test_nothing_at_all(pattern):
    """No sequence, or sequences without tokens."""
    for counts in ([0], [0, 0, 0]):
        q = torch.randn(0, 2, 8, requires_grad=True)
        out = foveal.attend_varlen(q, q, q, counts, counts, pattern)
        assert out.shape == (0, 2, 8)


@pytest.mark.parametrize(
    ("queries", "keys", "says"),
    [
        ([0, 5, 9], [0, 5, 8], r"cu_seqlens_q must end with the number of tokens, 8, got 9"),
        ([0, 8], [0, 5, 8], "as many sequences, got 1 and 2"),
        ([0, 5, 3, 8], [0, 5, 5, 8], "cu_seqlens_q must not fall, got 3 after 5"),
        ([1, 8], [0, 8], "cu_seqlens_q must begin with 0"),
        (torch.tensor([0.0, 8.0]), [0, 8], "must be .sequences . 1,. of int32 or int64"),
        (torch.tensor([[0, 8]]), [0, 8], "must be .sequences . 1,. of int32 or int64"),
        ([0, 8], torch.tensor([0, 7]), "cu_seqlens_k must end with the number of tokens, 8"),
    ],
)
def test_borders_that_do_not_fit(queries, keys, says):
    """Borders are checked, and told by name."""
    x = torch.randn(8, 2, 4)
    with pytest.raises(ValueError, match=says):
        foveal.attend_varlen(x, x, x, queries, keys, P.Full())


def test_other_arguments_that_do_not_fit():
    """Shapes and kinds too."""
    x = torch.randn(1, 2, 8, 4)
    with pytest.raises(ValueError, match="all sequences side by side"):
        foveal.attend_varlen(x, x, x, [0, 8], [0, 8], P.Full())
    with pytest.raises(TypeError, match="pattern must be a foveal"):
        foveal.attend_varlen(x[0], x[0], x[0], [0, 2], [0, 2], "Full")


def test_compiled_once_for_all_borders():
    """In a graph borders are values: other ones need no other graph; gradients are exact."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    @torch.compile(fullgraph=True, backend=backend)
    def run(q, k, v, some):
        return foveal.attend_varlen(q, k, v, some, some, P.SlidingWindow(9), softcap=4.0)

    q, k, v = packed(torch.float32, (60,), (60,))
    for lengths in ((20, 40), (7, 53)):
        some = borders(lengths)
        out = run(q, k, v, some)
        want = foveal.attend_varlen(q, k, v, some, some, P.SlidingWindow(9), softcap=4.0)
        assert_close(out, want)
        pairs = (torch.autograd.grad(x.square().sum(), (q, k, v)) for x in (out, want))
        for got, wanted in zip(*pairs, strict=True):
            assert_close(got, wanted)
    assert len(graphs) == 1


def test_a_pyramid_has_no_more_queries_than_keys():
    """Its clusters count from 0, so queries before all keys would stand nowhere."""
    q, k = torch.randn(8, 2, 4), torch.randn(4, 2, 4)
    with pytest.raises(ValueError, match="at most 4 queries for the 4 keys of a sequence, got 8"):
        foveal.attend_varlen(q, k, k, [0, 8], [0, 4], P.Pyramid(2, causal=True))
