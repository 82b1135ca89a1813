"""attend_varlen() against each sequence alone."""

import math

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


def bucket(distance: int, buckets: int, far: int) -> int:
    """T5's, of a decoder: half of them each a distance, the rest by its logarithm."""
    distance, near = max(distance, 0), buckets // 2
    if distance < near:
        return distance
    share = math.log(distance / near) / math.log(far / near)
    return min(buckets - 1, near + int(share * (buckets - near)))


def weighed(q, k, v, pattern, gain, queries=QUERIES, keys=KEYS) -> Tensor:
    """Each sequence by the formula; gain(distances (n, m)) -> (heads, n, m)."""
    outs = []
    for own, ks, vs in zip(q.split(queries), k.split(keys), v.split(keys), strict=True):
        n, m = len(own), len(ks)
        at = torch.arange(m - n, m)[:, None], torch.arange(m)[None]
        ks, vs = (x.repeat_interleave(2, 1) for x in (ks, vs))
        logits = torch.einsum("nhd,mhd->hnm", own, ks) / 4 + gain(at[0] - at[1])
        weights = logits.masked_fill(~pattern.allows(*at), -torch.inf).softmax(-1).nan_to_num()
        outs.append(torch.einsum("hnm,mhd->nhd", weights, vs))
    return torch.cat(outs)


BIASES = {
    "alibi": ((4,), lambda x: foveal.alibi(4, x), lambda x, far: -x[:, None, None] * far.abs()),
    "clipped": (
        (13, 4),
        foveal.TableBias,
        lambda x, far: x[(far.clamp(-6, 6) + 6)].movedim(-1, 0),
    ),
    "t5": (
        (8, 1),
        lambda x: foveal.TableBias.t5(x, bidirectional=False, max_distance=40),
        lambda x, far: x[far.clone().apply_(lambda d: bucket(d, 8, 40)).long()].movedim(-1, 0),
    ),
}


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("kind", ["alibi", "clipped", "t5"])
@pytest.mark.parametrize("pattern", [P.SlidingWindow(70), P.Blocks(8, True, 1)], ids=repr)
def test_biases_count_in_each_sequence(pattern, kind, impl):
    """Outputs and gradients, the bias's too, where queries are the last ones of their keys."""
    shape, make, gain = BIASES[kind]
    exact = [*packed(), torch.rand(shape, dtype=torch.float64, requires_grad=True)]
    want = weighed(*exact[:3], pattern, lambda far: gain(exact[3], far))
    noise = torch.randn_like(want)
    want_grads = torch.autograd.grad((want * noise).sum(), exact)
    dtype = torch.float32 if impl == "native" else torch.float64
    given = [x.detach().to(dtype).requires_grad_() for x in exact]
    some = borders(QUERIES), borders(KEYS)
    out = foveal.attend_varlen(*given[:3], *some, pattern, bias=make(given[3]), impl=impl)
    grads = torch.autograd.grad((out * noise).sum(), given)
    limit = 2e-5 if impl == "native" else 1e-10
    for got, wanted in zip((out, *grads), (want, *want_grads), strict=True):
        error = (got.double() - wanted).pow(2).mean().sqrt() / wanted.pow(2).mean().sqrt()
        assert error < limit


def test_other_rules_count_in_each_sequence():
    """Rows of the pattern itself, of images side by side, and of a function of both places."""
    q, k, v = packed(queries=(30, 30), keys=(30, 30))
    both, near = borders((30, 30)), P.Neighborhood((5, 6), 3)
    table = torch.randn(25, 4, dtype=torch.float64)
    for impl in ("reference", "tiled"):
        options = {"bias": foveal.TableBias(table), "impl": impl}
        out = foveal.attend_varlen(q, k, v, both, both, near, **options)
        want = alone(q, k, v, near, (30, 30), (30, 30), bias=options["bias"])
        assert_close(out, want)
    bias = foveal.TableBias(torch.randn(97, 4).double(), rows=lambda q, k: (3 * q + k) % 97)
    q, k, v = packed(queries=(30, 30), keys=(30, 30))
    out = foveal.attend_varlen(q, k, v, both, both, P.SlidingWindow(9), bias=bias)
    assert_close(out, alone(q, k, v, P.SlidingWindow(9), (30, 30), (30, 30), bias=bias))


@pytest.mark.parametrize("pattern", [P.SlidingWindow(4), P.Pyramid(4)], ids=repr)
def test_more_queries_and_biases(pattern):
    """Queries before all keys are that far away; a Pyramid has its own table, level by level."""
    q, k, v = packed(queries=(9, 3), keys=(9, 8))
    if pattern.pools:
        table = torch.randn(15, 4, dtype=torch.float64)
        out = foveal.attend_varlen(
            k.repeat(1, 2, 1), k, v, [0, 9, 17], [0, 9, 17], pattern, bias=foveal.TableBias(table)
        )
        rows = [x[:9].transpose(0, 1)[None] for x in (k.repeat(1, 2, 1), k, v)]
        want = foveal.attend(*rows, pattern, bias=foveal.TableBias(table))
        assert_close(out[:9], want[0].transpose(0, 1))
        return
    q, k, v = packed(queries=(9, 3), keys=(2, 8))
    out = foveal.attend_varlen(q, k, v, [0, 9, 12], [0, 2, 10], pattern, bias=foveal.alibi(4))
    slopes = foveal.alibi(4).slopes[:, None, None]
    own = q[5:9], k[:2], v[:2]  # the first five are too far away
    want = weighed(*own, pattern, lambda far: -slopes * far.abs(), (4,), (2,))
    assert bool((out[:4] == 0).all())
    assert_close(out[5:9], want)


def test_other_biases_are_refused_by_name():
    """What has no place for sequences of any lengths is told; so is a table of another shape."""
    x, both = torch.randn(8, 2, 4), [0, 3, 8]
    window = foveal.WindowBias(torch.zeros(1, 2, 8, 4), torch.zeros(1, 2, 8, 4))
    for bias, name in ((torch.zeros(8, 8), "Tensor"), (window, "WindowBias"), (1.0, "float")):
        with pytest.raises(ValueError, match=f"bias must be alibi.* got {name}"):
            foveal.attend_varlen(x, x, x, both, both, P.Full(), bias=bias)
    even = foveal.TableBias(torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"TableBias\.table must be"):
        foveal.attend_varlen(x, x, x, both, both, P.Full(), bias=even)
    with pytest.raises(ValueError, match="slope for each of 3 heads"):
        foveal.attend_varlen(x, x, x, both, both, P.Full(), bias=foveal.alibi(3))


@pytest.mark.parametrize("kind", ["alibi", "clipped", "t5"])
def test_biases_in_a_graph(kind):
    """In a graph too, with the gradient of the bias."""
    shape, make, _ = BIASES[kind]

    def run(q, k, v, x, queries, keys):
        bias = make(x)
        return foveal.attend_varlen(q, k, v, queries, keys, P.SlidingWindow(30), bias=bias)

    given = [*packed(torch.float32), torch.rand(shape, requires_grad=True)]
    some = borders(QUERIES), borders(KEYS)
    out = torch.compile(run, fullgraph=True, backend="aot_eager")(*given, *some)
    want = run(*given, *some)
    assert_close(out, want)
    pairs = (torch.autograd.grad(x.square().sum(), given) for x in (out, want))
    for got, wanted in zip(*pairs, strict=True):
        assert_close(got, wanted)


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
