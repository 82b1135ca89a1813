"""attend over many ranks: what one process computes, by exchanging what the pattern reads."""

import itertools
from pathlib import Path

import pytest
import torch

import foveal
from foveal import parallel
from foveal import patterns as P
from foveal.parallel.shares import cut_evenly

CASES = {
    "window": (P.SlidingWindow(16), 97),
    "window, both sides": (P.SlidingWindow(40, causal=False), 97),
    "full": (P.Full(causal=True), 50),
    "blocks": (P.Blocks(8, lookback=1), 97),
    "neighborhood, clipped": (P.Neighborhood((9, 11), 5), 99),
    "neighborhood, shifted": (P.Neighborhood((9, 11), 5, border="shift"), 99),
    "neighborhood, raster": (P.Neighborhood((9, 11), (3, 5), causal="raster"), 99),
    "neighborhood, clip of frames": (P.Neighborhood((4, 5, 6), (3, 3, 3)), 120),
    "neighborhood, dilated": (P.Neighborhood((100,), 7, dilation=3), 100),
    "halo": (P.Halo((12, 12), 4, 2), 144),
    "axial, rows": (P.Axial((8, 9)), 72),
    "axial, columns": (P.Axial((8, 9), "column", causal=True), 72),
    "text and image": (P.TextImage(20, P.Neighborhood((6, 6), 3, causal="raster")), 56),
    "prefix": (P.Prefix(9) | P.SlidingWindow(5), 80),
    "fixed": (P.Fixed(16, 4), 100),
    "strided": (P.Strided(10), 100),
    "union": (P.SlidingWindow(8) | P.Strided(10), 100),
    "documents": (P.Documents((10, 0, 33, 7, 50)) & P.SlidingWindow(5), 100),
    "heads apart": (P.BlockSparse(torch.rand(2, 4, 4) > 0.4, 16), 64),
    "next scale": (P.NextScale((1, 2, 3, 4)), 30),
}


class OnlyAllows(P.Pattern):
    """A stranger's pattern that has nothing but its definition."""

    def allows(self, q_idx, k_idx):
        return ((q_idx * 7 + k_idx * 3) % 5 == 0) | (q_idx == k_idx)


def compare(pattern, length, sizes, mask=None, bias=None, **options):
    """Largest difference of out, lse and all gradients of the ranks from those of one process."""
    ranks, heads = len(sizes), pattern.heads or 4
    borders = [0, *itertools.accumulate(sizes)]
    generator = torch.Generator().manual_seed(length)

    def draw(heads, dim):
        return torch.randn(2, heads, length, dim, generator=generator, dtype=torch.float64)

    kv_heads = heads if pattern.heads else heads // 2
    tensors = (draw(heads, 8), draw(kv_heads, 8), draw(kv_heads, 6))
    weights = draw(heads, 6), draw(heads, 1)[..., 0]

    def loss(out, lse, part):
        finite = torch.where(lse.isfinite(), lse, 0.0)
        return (out * weights[0][:, :, part]).sum() + (finite * weights[1][:, :, part]).sum()

    whole = [x.clone().requires_grad_() for x in tensors]
    options = {"return_lse": True, **options}
    out, lse = foveal.attend(*whole, pattern, key_mask=mask, bias=bias, **options)
    loss(out, lse, slice(None)).backward()

    def act(rank):
        part = slice(borders[rank.rank], borders[rank.rank + 1])
        mine = [x[:, :, part].clone().requires_grad_() for x in tensors]
        own = None if mask is None else mask[:, part]
        added = bias[:, :, part] if isinstance(bias, torch.Tensor) else bias
        found = parallel.attend(*mine, pattern, rank, key_mask=own, bias=added, **options)
        loss(*found, part).backward()
        return [x.detach() for x in found] + [x.grad for x in mine]

    got = [torch.cat(one, 2) for one in zip(*parallel.simulate(ranks, act), strict=True)]
    wanted = [out, lse, *(x.grad for x in whole)]
    clean = [[x.detach().nan_to_num(neginf=-99.0) for x in side] for side in (got, wanted)]
    return max(float((a - b).abs().max()) for a, b in zip(*clean, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_ranks_compute_what_one_process_does(name):
    """Even and uneven parts, one of them empty, with and without a mask: to 1e-10."""
    pattern, length = CASES[name]
    mask = torch.rand(2, length, generator=torch.Generator().manual_seed(1)) > 0.3
    uneven = (length // 3, 0, length - length // 3 - 5, 5)
    assert compare(pattern, length, cut_evenly(length, 3), mask) < 1e-10
    assert compare(pattern, length, uneven) < 1e-10


PYRAMIDS = {
    "coarse": P.Pyramid(2),
    "fine": P.Pyramid(4, queries="fine"),
    "causal": P.Pyramid(4, causal=True),
    "causal, coarse": P.Pyramid(2, causal=True, queries="coarse"),
    "siblings": P.Pyramid(4, neighbors="sibling"),
    "siblings, causal": P.Pyramid(4, causal=True, neighbors="sibling"),
}


@pytest.mark.parametrize("name", PYRAMIDS)
def test_ranks_pool_what_one_process_does(name):
    """Parts cut at powers of two and anywhere, with and without a mask: to 1e-10."""
    mask = torch.rand(2, 101, generator=torch.Generator().manual_seed(1)) > 0.3
    assert compare(PYRAMIDS[name], 64, (16, 16, 16, 16)) < 1e-10
    assert compare(PYRAMIDS[name], 101, (32, 48, 21), mask) < 1e-10
    assert compare(PYRAMIDS[name], 77, (13, 31, 33)) < 1e-10


@pytest.mark.parametrize("causal", [False, True])
def test_pooled_keys_have_tables_sinks_and_softcap(causal):
    """As in one process."""
    table = foveal.TableBias(torch.randn(15, 4).double())
    assert compare(P.Pyramid(4, causal=causal), 101, (32, 48, 21), bias=table) < 1e-10
    options = {"sinks": torch.randn(4).double(), "softcap": 2.0}
    assert compare(P.Pyramid(4, causal=causal), 64, (32, 32), **options) < 1e-10


def test_a_pattern_with_nothing_but_a_definition():
    """It is asked for all keys, and right."""
    assert OnlyAllows().needs(3, 9, 40) == ((0, 40),)
    assert compare(OnlyAllows(), 41, (20, 0, 21)) < 1e-10


@pytest.mark.parametrize(
    ("pattern", "length", "bias"),
    [
        (P.SlidingWindow(12), 90, foveal.alibi(4)),
        (P.Prefix(7) | P.SlidingWindow(5), 80, foveal.alibi(4)),
        (P.SlidingWindow(12), 90, foveal.TableBias(torch.randn(25, 4).double())),
        (P.Neighborhood((9, 10), 5), 90, foveal.TableBias(torch.randn(81, 4).double())),
        (P.Fixed(16, 4), 90, foveal.TableBias.t5(torch.randn(8, 4).double(), False, 20)),
        (P.Strided(9), 90, torch.randn(2, 4, 90, 90).double()),
    ],
)
def test_biases_count_over_the_whole(pattern, length, bias):
    """Tables, ALiBi, T5's buckets and tensors, over one run of keys and over several."""
    assert compare(pattern, length, (40, 30, 20), bias=bias) < 1e-10


def test_sinks_softcap_and_scale():
    """What shapes the logits goes with the call."""
    options = {"sinks": torch.randn(4).double(), "softcap": 3.0, "scale": 0.7}
    assert compare(P.Prefix(3) | P.SlidingWindow(9), 60, (10, 20, 30), **options) < 1e-10


def test_a_table_of_biases_gets_its_gradient():
    """The gradients of the ranks add up to that of one process."""
    table = torch.randn(25, 2, dtype=torch.float64)
    q, k, v = (torch.randn(1, 2, 50, 4, dtype=torch.float64) for _ in range(3))
    pattern = P.SlidingWindow(12)
    whole = table.clone().requires_grad_()
    foveal.attend(q, k, v, pattern, bias=foveal.TableBias(whole)).square().sum().backward()

    def act(rank):
        part = slice(25 * rank.rank, 25 * rank.rank + 25)
        mine = table.clone().requires_grad_()
        own = [x[:, :, part] for x in (q, k, v)]
        out = parallel.attend(*own, pattern, rank, bias=foveal.TableBias(mine))
        out.square().sum().backward()
        return mine.grad

    torch.testing.assert_close(sum(parallel.simulate(2, act)), whole.grad)


@pytest.mark.parametrize("name", ["window", "halo", "prefix", "axial, columns", "documents"])
def test_what_is_exchanged_is_what_explain_says(name):
    """Bytes that a rank receives beyond the few that arrange it, at the exchange itself."""
    pattern, length = CASES[name]

    def act(rank):
        x = torch.randn(1, 2, length, 8)
        q, k, v = (parallel.take(x, rank, dim=2) for _ in range(3))
        sizes = cut_evenly(length, 4)
        parallel.attend(q, k, v, pattern, rank, lengths=sizes)  # which arranges it
        rank.bytes_received = 0
        parallel.attend(q, k, v, pattern, rank, lengths=sizes)
        return rank.bytes_received

    said = parallel.explain(pattern, length, 4, heads=2, head_dim=8, itemsize=4)
    assert max(parallel.simulate(4, act)) == said.bytes


def test_volumes_at_a_million_tokens():
    """A window of 4,096 on 512 ranks needs at most half a percent of an all-gather."""
    said = parallel.explain(
        P.SlidingWindow(4096), 1 << 20, 512, heads=32, kv_heads=8, head_dim=128
    )
    assert said.tokens == 4095
    assert said.share < 0.005
    assert said.ulysses is None
    assert "0.391%" in str(said)
    page = " ".join((Path(__file__).parents[2] / "docs/scale.md").read_text("utf-8").split())
    assert str(said) in page.replace("# ", "")


def test_volumes_of_a_pyramid_at_a_million_tokens():
    """At most 0.2 % of an all-gather on 512 ranks, though each reads all tokens in summary."""
    said = parallel.explain(P.Pyramid(16, causal=True), 1 << 20, 512, heads=8, head_dim=64)
    assert 511 < said.tokens < 2048
    assert said.share < 0.002


@pytest.mark.parametrize("causal", [False, True])
def test_what_a_pyramid_exchanges_is_what_explain_says(causal):
    """Keys and values; beside them go the numbers of tokens, and coarse queries once a rank."""
    pattern, length = P.Pyramid(4, causal=causal), 96

    def act(rank):
        q = parallel.take(torch.randn(1, 2, length, 8), rank, dim=2)
        rank.bytes_received = 0
        parallel.attend(q, q, q, pattern, rank, lengths=(24,) * 4)  # which arranges it
        arranged = rank.bytes_received
        rank.bytes_received = 0
        parallel.attend(q, q, q, pattern, rank, lengths=(24,) * 4)
        assert rank.bytes_received < arranged
        return rank.bytes_received

    said = parallel.explain(pattern, length, 4, heads=2, head_dim=8, itemsize=4)
    counts = said.tokens * 4 * 4
    queries = 0 if causal else 9 * 2 * 8 * 4  # three clusters of each of three ranks
    assert max(parallel.simulate(4, act)) == said.bytes + counts + queries


@pytest.mark.parametrize("ranks", [1, 3, 4, 7])
def test_parts_of_a_sequence_are_cut_evenly(ranks):
    """Nearly equal, at multiples of `align` where there are enough of them, and all of it."""
    for length, align in itertools.product((0, 5, 64, 101), (1, 8)):
        sizes = cut_evenly(length, ranks, align)
        assert sum(sizes) == length
        assert len(sizes) == ranks
        if length >= align * ranks:
            assert not any(sum(sizes[:n]) % align for n in range(ranks))


def test_queries_of_a_strided_pattern_have_parts_of_their_own():
    """Few queries of an image, cut apart from its keys; explain knows of them."""
    pattern = P.Halo((12, 12), 4, 1, query_stride=2)
    q, k = torch.randn(1, 2, 36, 8), torch.randn(1, 2, 144, 8)

    def act(rank):
        few, many = parallel.take(q, rank, dim=2), parallel.take(k, rank, dim=2)
        out = parallel.attend(few, many, many, pattern, rank)
        given = {"lengths": (36,) * 4, "queries": [(9 * n, 9 * n + 9) for n in range(4)]}
        rank.bytes_received = 0
        assert torch.equal(out, parallel.attend(few, many, many, pattern, rank, **given))
        received = rank.bytes_received
        with pytest.raises(ValueError, match="has 36 queries for 144 keys, got 144"):
            parallel.attend(many, many, many, pattern, rank)
        return out, received

    found = parallel.simulate(4, act)
    torch.testing.assert_close(
        torch.cat([out for out, _ in found], 2), foveal.attend(q, k, k, pattern)
    )
    said = parallel.explain(pattern, 144, 4, heads=2, head_dim=8, itemsize=4)
    assert max(size for _, size in found) == said.bytes


@pytest.mark.parametrize("pattern", [P.SlidingWindow(20), P.Pyramid(4), P.Prefix(9), P.Full()])
def test_one_exchange_and_one_gathering_a_direction(pattern):
    """However many ranks a query's keys lie on; a gathering goes back as an exchange."""

    def act(rank):
        calls = []
        for name in ("exchange", "gather"):
            real = getattr(rank, name)
            setattr(rank, name, lambda *a, n=name, real=real: calls.append(n) or real(*a))
        q, k, v = (torch.randn(1, 2, 12, 8, requires_grad=True) for _ in range(3))
        found = []
        for _ in range(2):  # the first arranges who wants what
            calls.clear()
            out = parallel.attend(q, k, v, pattern, rank, lengths=(12,) * 4)
            found.append(tuple(calls))
            calls.clear()
            out.sum().backward()
            found.append(tuple(calls))
        return found

    for found in parallel.simulate(4, act):
        for calls in found[1:]:
            assert len(calls) <= (2 if pattern.pools else 1)


def test_what_cannot_be_shared_is_refused():
    """In words that name the argument: no tokens, no mesh, parts that are not as long."""
    q = torch.randn(1, 2, 8, 4)

    def act(rank):
        own = q[:, :, : 8 * rank.rank]
        with pytest.raises(ValueError, match="every rank needs a token"):
            parallel.attend(own, own, own, P.Pyramid(2), rank)
        with pytest.raises(ValueError, match="lengths must name the tokens of 2 ranks"):
            parallel.attend(q, q, q, P.Full(), rank, lengths=(3, 4))
        with pytest.raises(ValueError, match="as many tokens"):
            parallel.attend(q[:, :, 1:], q, q, P.Full(), rank)

    parallel.simulate(2, act)
    with pytest.raises(TypeError, match="mesh must be a DeviceMesh of one dimension"):
        parallel.attend(q, q, q, P.Full(), "cp")
    with pytest.raises(ValueError, match="dim=4 is no dimension"):
        parallel.simulate(1, lambda rank: parallel.take(q, rank, dim=4))
