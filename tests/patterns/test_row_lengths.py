"""Rows of lengths that a pattern does not have are told in one line, never an IndexError."""

import pytest
import torch

import foveal
from foveal import patterns as P
from foveal.patterns.gathered import Gathered
from foveal.patterns.part import Part

PACK = P.Packed(P.Blocks(36, causal=True), (2, 76, 82, 31), (1, 22, 15, 8))
ROW = P.Documents((20, 30))
MORE_QUERIES = [
    (PACK, 63, 191),
    (PACK | PACK, 47, 191),
    (Part(PACK, 40, 6), 7, 191),
    (P.Packed(P.Full(), (2, 3), (4, 4)), 9, 5),
    (P.Packed(P.SlidingWindow(4), (2, 3)), 6, 5),
    (ROW, 63, 50),
    (ROW & P.SlidingWindow(4), 51, 50),
    (ROW | P.Prefix(3), 51, 50),
    (Part(P.Full(causal=True), 3, 5), 6, 8),
    (Gathered(P.Full(), 3, 2, ((0, 5),), 5), 3, 5),
    (P.Halo((4, 6), 2, 1, query_stride=2), 7, 24),
    (P.Shorten(4), 5, 16),
]


def attend(pattern, n_queries, n_keys, impl, **options):
    q, k = torch.randn(1, 2, n_queries, 8), torch.randn(1, 2, n_keys, 8)
    return foveal.attend(q, k, k, pattern, impl=impl, **options)


@pytest.mark.parametrize("impl", [None, "reference", "dense", "tiled", "native"])
@pytest.mark.parametrize(("pattern", "n_queries", "n_keys"), MORE_QUERIES)
def test_more_queries_than_there_are(pattern, n_queries, n_keys, impl):
    """Every implementation says how many there are, and so do masks and explain."""
    says = rf"has \d+ queries for {n_keys} keys, got \d+; give q no more"
    for ask in (
        lambda: attend(pattern, n_queries, n_keys, impl),
        lambda: pattern.mask(n_queries, n_keys),
        lambda: foveal.explain(pattern, n_keys, num_queries=n_queries),
    ):
        with pytest.raises(ValueError, match=says) as error:
            ask()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("impl", [None, "reference", "dense", "tiled", "native"])
def test_keys_that_are_no_whole_row(impl):
    """As many tokens as queries, or as few as some documents, make no row of a pack."""
    with pytest.raises(ValueError, match="2 documents of 5 tokens in all, got 8 tokens"):
        attend(P.Packed(P.Full(), (2, 3), (4, 4)), 8, 8, impl)
    for pattern in (ROW, ROW & P.Full(causal=True)):
        with pytest.raises(ValueError, match="2 documents of 50 tokens in all"):
            attend(pattern, 63, 40, impl)


@pytest.mark.parametrize("impl", ["reference", "tiled"])
def test_fewer_queries_and_the_last_ones(impl):
    """What fits stays: fewer queries than a pack has, and an offset among them."""
    q, k = torch.randn(1, 2, 46, 8), torch.randn(1, 2, 191, 8)
    whole = foveal.attend(q, k, k, PACK, impl=impl)
    torch.testing.assert_close(foveal.attend(q[:, :, :30], k, k, PACK), whole[:, :, :30])
    last = foveal.attend(q[:, :, 30:], k, k, PACK, impl=impl, q_offset=-1)
    torch.testing.assert_close(last, whole[:, :, 30:])
