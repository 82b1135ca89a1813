"""Which keys a stretch of queries reads: exactly, from the plan, and at any size."""

import random
import time

import pytest
import torch

from foveal import patterns as P
from foveal.patterns import base
from foveal.patterns.gathered import Gathered
from foveal.patterns.needs import count, listed, merged, runs_in

PATTERNS = {
    "window": (P.SlidingWindow(16), 97),
    "window, both sides": (P.SlidingWindow(16, causal=False), 97),
    "full": (P.Full(), 50),
    "blocks": (P.Blocks(8, lookback=1), 97),
    "clipped": (P.Neighborhood((9, 11), 5), 99),
    "shifted": (P.Neighborhood((9, 11), 5, dilation=2, border="shift"), 99),
    "raster": (P.Neighborhood((9, 11), (3, 5), causal="raster"), 99),
    "corner": (P.Neighborhood((9, 11), 3, causal="corner"), 99),
    "voxels": (P.Neighborhood((4, 5, 6), (3, 3, 3)), 120),
    "line": (P.Neighborhood((100,), 7, dilation=3), 100),
    "halo": (P.Halo((10, 13), 4, 2), 130),
    "rows": (P.Axial((8, 9)), 72),
    "columns": (P.Axial((8, 9), "column", causal=True), 72),
    "text and image": (P.TextImage(20, P.Axial((6, 6), "column", causal=True)), 56),
    "prefix": (P.Prefix(9), 80),
    "fixed": (P.Fixed(16, 4), 100),
    "fixed, free": (P.Fixed(16, 4, causal=False), 100),
    "strided": (P.Strided(10), 100),
    "union": (P.SlidingWindow(8) | P.Strided(10), 100),
    "documents": (P.Documents((10, 0, 33, 7, 50)) & P.SlidingWindow(5), 100),
    "heads apart": (P.BlockSparse(torch.rand(2, 8, 8) > 0.6, 8), 64),
    "next scale": (P.NextScale((1, 2, 3, 4)), 30),
    "block diffusion": (P.BlockDiffusion(4, 16), 32),
}


@pytest.mark.parametrize("listing", [True, False])
@pytest.mark.parametrize("name", PATTERNS)
def test_needs_are_what_the_mask_says(name, listing, monkeypatch):
    """No key too many and none too few, whether parts are listed or cut from the whole plan."""
    monkeypatch.setattr(base, "WORTH_CUTTING", 10**9 if listing else 1)
    pattern, length = PATTERNS[name]
    mask = pattern.mask(length)
    mask = mask.any(0) if mask.ndim == 3 else mask
    draw = random.Random(name)
    for _ in range(8):
        first, last = sorted(draw.choices(range(length + 1), k=2))
        found = listed(pattern.needs(first, last, length))
        assert torch.equal(found, mask[first:last].any(0).nonzero()[:, 0])


def in_full(plan):
    """How often each pair stands in a plan: (queries, keys) int."""
    found = torch.zeros(plan.num_queries, plan.num_keys, dtype=torch.int64)
    for group in plan.groups:
        queries, keys = group.queries.index(), group.key_index()
        mask = torch.ones(1, group.tile_q, group.tile_k) if group.mask is None else group.mask
        for number in range(group.num_tiles):
            allowed = mask[number % len(mask)].long()
            at = (queries[number][:, None].expand_as(allowed), keys[number].expand_as(allowed))
            found.index_put_(at, allowed, accumulate=True)
    return found


@pytest.mark.parametrize("name", ["columns", "text and image", "fixed", "fixed, free", "strided"])
def test_a_part_that_is_cut_from_the_whole_plan(name, monkeypatch):
    """Each pair stands in it once, at whichever query it begins."""
    monkeypatch.setattr(base, "WORTH_CUTTING", 1)
    pattern, length = PATTERNS[name]
    for first, last in ((0, length), (13, 14), (20, 55), (0, 41), (31, length)):
        part = pattern._part(first, last - first, length)
        assert torch.equal(in_full(part), pattern.mask(length)[first:last].long())


def test_runs_are_merged():
    """Overlapping and touching runs become one; the others keep their gap."""
    starts, ends = torch.tensor([5, 0, 9, 2]), torch.tensor([7, 3, 12, 5])
    assert merged([(starts, ends)]) == ((0, 7), (9, 12))
    assert merged([]) == ()
    assert runs_in(torch.tensor([4, 1, 2, 9, 1])) == ((1, 3), (4, 5), (9, 10))


MILLION = 1 << 20
LARGE = {
    "window": P.SlidingWindow(4096),
    "image": P.Neighborhood((1024, 1024), 7),
    "dilated": P.Neighborhood((1024, 1024), 13, dilation=8, border="shift"),
    "voxels": P.Neighborhood((64, 128, 128), (3, 5, 5)),
    "halo": P.Halo((1024, 1024), 8, 3),
    "columns": P.Axial((1024, 1024), "column"),
    "text and image": P.TextImage(1024, P.Axial((1023, 1024), "column", causal=True)),
    "prefix": P.Prefix(99) | P.SlidingWindow(128),
    "fixed": P.Fixed(1024, 16),
    "fixed, free": P.Fixed(1024, 16, causal=False),
    "strided": P.Strided(1024),
    "documents": P.Documents((777,) * 1349 + (MILLION - 777 * 1349,)) & P.SlidingWindow(128),
}


@pytest.mark.parametrize("name", LARGE)
def test_needs_of_one_of_many_ranks_are_found_at_once(name):
    """A million tokens on 512 ranks: nobody looks at the whole sequence to plan one part of it."""
    size = MILLION // 512
    began = time.process_time()
    found = LARGE[name].needs(256 * size, 257 * size, MILLION)
    Gathered(LARGE[name], 256 * size, size, found, MILLION).tiles(count(found))
    assert time.process_time() - began < 0.5  # 0.1 where nobody else computes
