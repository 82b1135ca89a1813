"""Rows of neighbours beside the own ones: those of the whole tensor, and their gradients."""

import itertools

import pytest
import torch
from torch.nn.functional import conv1d, pad

from foveal import parallel
from foveal import patterns as P

SHARDS = [(7, 7, 6), (1, 2, 1, 16), (0, 9, 0, 11), (20, 0), (0, 0, 3, 1, 1, 15)]


def borders_of(sizes):
    return list(itertools.pairwise([0, *itertools.accumulate(sizes)]))


@pytest.mark.parametrize("beyond", ["zeros", "nothing"])
@pytest.mark.parametrize("sizes", SHARDS)
def test_rows_and_gradients_are_those_of_the_whole(sizes, beyond):
    """Uneven, empty and short parts, halos longer than parts: bit for bit, in any dimension."""
    x = torch.randn(2, 3, 20, 2, dtype=torch.float64)
    for before, after, dim in ((0, 0, 2), (2, 0, 2), (0, 3, -2), (5, 4, 2), (30, 30, 2)):
        padded = pad(x, (0, 0, before, after))
        spans = [(a, b + before + after) for a, b in borders_of(sizes)]
        low, high = (0, 20 + before + after) if beyond == "zeros" else (before, before + 20)
        spans = [(max(a, low), max(min(b, high), max(a, low))) for a, b in spans]
        weights = torch.randn_like(padded)
        whole = torch.zeros_like(padded)
        for a, b in spans:
            whole[:, :, a:b] += weights[:, :, a:b]

        def act(rank, before=before, after=after, dim=dim, spans=spans, weights=weights):
            a, b = borders_of(sizes)[rank.rank]
            mine = x[:, :, a:b].clone().requires_grad_()
            found = parallel.fetch(
                mine, before, after, mesh=rank, dim=dim, lengths=sizes, beyond=beyond
            )
            first, last = spans[rank.rank]
            (found * weights[:, :, first:last]).sum().backward()
            return found.detach(), mine.grad

        found, grads = zip(*parallel.simulate(len(sizes), act), strict=True)
        for one, (a, b) in zip(found, spans, strict=True):
            assert torch.equal(one, padded[:, :, a:b])
        wanted = whole[:, :, before : before + 20]
        torch.testing.assert_close(torch.cat(grads, 2), wanted, rtol=0, atol=1e-14)


@pytest.mark.parametrize("kernel", [2, 5, 11])
def test_a_convolution_of_ones_own(kernel):
    """One exchange a direction, of exactly the rows that the kernel reads."""
    x = torch.randn(1, 4, 30, dtype=torch.float64)
    weight = torch.randn(3, 4, kernel, dtype=torch.float64)
    left, right = (kernel - 1) // 2, kernel // 2
    wanted = conv1d(pad(x, (left, right)), weight)

    def act(rank):
        own = parallel.take(x, rank, dim=2)
        rank.bytes_received = 0
        found = parallel.fetch(own, left, right, mesh=rank, dim=2, lengths=(10, 10, 10))
        rows = left * (rank.rank > 0) + right * (rank.rank < 2)
        assert rank.bytes_received == rows * 4 * 8
        return conv1d(found, weight)

    torch.testing.assert_close(torch.cat(parallel.simulate(3, act), 2), wanted)


def test_masks_and_numbers_are_fetched_too():
    """Of any dtype, in front or behind, where every rank is asked how many it has."""
    for x in (torch.rand(12) > 0.5, torch.arange(12), torch.rand(12).half()):

        def act(rank, x=x):
            own = x[:3] if rank.rank == 0 else x[3:]
            return parallel.fetch(own, 4, 1, mesh=rank, dim=0)

        first, second = parallel.simulate(2, act)
        assert first.dtype == x.dtype
        assert torch.equal(first, torch.cat([x.new_zeros(4), x[:4]]))
        assert torch.equal(second, torch.cat([x.new_zeros(1), x, x.new_zeros(1)]))


def test_what_cannot_be_fetched_is_refused():
    """In words that name the argument."""
    x = torch.randn(4, 2)

    def act(rank):
        with pytest.raises(ValueError, match="before must be an int of at least 0"):
            parallel.fetch(x, -1, mesh=rank)
        with pytest.raises(ValueError, match="dim=2 is no dimension"):
            parallel.fetch(x, 1, mesh=rank, dim=2)
        with pytest.raises(ValueError, match="beyond must be 'zeros' or 'nothing'"):
            parallel.fetch(x, 1, mesh=rank, beyond="ones")
        with pytest.raises(ValueError, match="lengths must name the tokens of 2 ranks"):
            parallel.fetch(x, 1, mesh=rank, lengths=(3, 1))

    parallel.simulate(2, act)
    with pytest.raises(TypeError, match="mesh must be a DeviceMesh of one dimension"):
        parallel.fetch(x, 1, mesh="cp")
    with pytest.raises(TypeError, match="x must be a tensor, got list"):
        parallel.simulate(1, lambda rank: parallel.fetch([1, 2], 1, mesh=rank))
    with pytest.raises(ValueError, match="align must be a positive int, got align"):
        parallel.simulate(1, lambda rank: parallel.take(x, rank, align=2.5))
    with pytest.raises(ValueError, match="pattern must be a Pattern, got str"):
        parallel.explain("SlidingWindow(4)", 64, 2)
    with pytest.raises(ValueError, match="itemsize must be a positive int"):
        parallel.explain(P.Full(), 64, 2, itemsize=0)
