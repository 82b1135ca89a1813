"""Plans of packs in the form of the kernel, which are not put together group by group."""

import ctypes
import random

import pytest
import torch

from foveal import patterns as P
from foveal.ops import attend
from foveal.ops.native import abi, plans
from foveal.patterns import bands, base
from foveal.patterns.tiling import Tiling

WITHIN = [
    P.Full(),
    P.Full(causal=True),
    P.SlidingWindow(1),
    P.SlidingWindow(100),
    P.SlidingWindow(70, causal=False),
    P.SlidingWindow(9) & P.Strided(2),
    P.SlidingWindow(3) | P.SlidingWindow(80),
]
LENGTHS = [(), (0,), (1,), (300,), (64, 64, 64), (65, 0, 63, 1, 200), (5, 7, 129, 128, 127, 2)]


def drawn(seed):
    draw = random.Random(seed)
    return tuple(draw.choice((0, 1, draw.randint(1, 300))) for _ in range(9))


def in_form_of_the_kernel(plan):
    """(groups,) of plan.h, read from memory."""
    return (abi.Group * plan.num_groups).from_address(plan.groups)


def read(address, count):
    return list((ctypes.c_int64 * count).from_address(address)) if count else []


def mask_of(plan, num_queries, num_keys):
    """Which pairs the kernel computes, and how often a query stands in a tile."""
    mask = [bytearray(num_keys) for _ in range(num_queries)]
    times = [0] * num_queries
    for group in in_form_of_the_kernel(plan):
        starts = read(group.queries.tiles, group.num_tiles)
        parts = [group.keys[number] for number in range(group.num_parts)]
        for tile, start in enumerate(starts):
            queries = [start + item for item in read(group.queries.items, group.tile_q)]
            keys = [
                read(part.tiles, group.num_tiles)[tile] + item
                for part in parts
                for item in read(part.items, part.count)
            ]
            for query in queries:
                times[query] += 1
            words = read(group.mask, group.tile_k) if group.mask else [-1] * group.tile_k
            for key, word in zip(keys, words, strict=True):
                for bit, query in enumerate(queries):
                    mask[query][key] |= word >> bit & 1
    mask = torch.tensor([list(row) for row in mask], dtype=torch.bool)
    return mask.view(num_queries, num_keys), torch.tensor(times, dtype=torch.int)


@pytest.mark.parametrize("within", WITHIN, ids=repr)
def test_the_kernel_is_given_the_pattern(within):
    """Every pair that is allowed and no other, in tiles of one document and of <= 64 queries."""
    for lengths in (*LENGTHS, drawn(1)):
        pattern, length = P.Documents(lengths) & within, sum(lengths) + 3
        plan = plans.plan(pattern, length, False)
        mask, times = mask_of(plan, length, length)
        assert torch.equal(mask, pattern.mask(length)), lengths
        assert torch.equal(times, mask.any(1).int())
        assert all(group.tile_q <= plans.WORD for group in in_form_of_the_kernel(plan))
        order = read(plan.order, 2 * plan.num_groups) if plan.order else []
        assert order[::2] == list(range(len(order) // 2))


@pytest.mark.parametrize("make", [P.Packed, lambda within, *lengths: P.Documents(lengths[0])])
def test_other_ways_to_pack(make):
    """Patterns that restart, and queries that are the last of their documents."""
    pattern = make(P.SlidingWindow(40), (90, 0, 3, 70), (80, 0, 5, 64))
    for first, count in ((0, 149), (70, 50)):
        part = pattern._part(first, count, 163)
        mask = torch.zeros(count, 163, dtype=torch.bool)
        for group in part.groups:
            on = torch.ones(group.tile_q, group.tile_k, dtype=torch.bool)
            on = on.expand(group.num_tiles, -1, -1) if group.mask is None else group.mask
            at = group.queries.index()[:, :, None] * 163 + group.key_index()[:, None, :]
            mask.view(-1)[at[on.expand(at.shape)]] = True
        wanted = pattern.allows(torch.arange(first, first + count)[:, None], torch.arange(163))
        assert torch.equal(mask, wanted)


def test_cached_parts_change_nothing():
    """The plan of a pack is the same whether others like it have been planned before or not."""
    within, lengths = P.SlidingWindow(48), drawn(7)

    def planned():
        base._fresh_tiles.cache_clear()
        plan = (P.Documents(lengths) & within).tiles(sum(lengths))
        rows = [getattr(plan.rows, name) for name in plan.rows.__dataclass_fields__]
        masks = [one.mask for one in plan.groups if one.mask is not None]
        return [*rows, plan.distances.words, *masks]

    for cached in (bands.distances_of, bands._tile_mask):
        cached.cache_clear()
    alone = planned()
    for seed in range(8, 12):
        (P.Documents(drawn(seed)) & within).tiles(sum(drawn(seed))).groups  # noqa: B018
    again = planned()
    assert len(alone) == len(again)
    assert all(torch.equal(a, b) for a, b in zip(alone, again, strict=True))


@pytest.mark.parametrize("within", WITHIN, ids=repr)
def test_as_group_by_group(within, monkeypatch):
    """Outputs and gradients have the bits that a plan of groups gives them."""
    lengths = drawn(3)
    pattern, length = P.Documents(lengths) & within, sum(lengths) + 2

    def computed():
        noise = torch.Generator().manual_seed(0)
        q, k, v = (torch.randn(1, 2, length, 16, generator=noise) for _ in range(3))
        given = [x.requires_grad_() for x in (q, k, v)]
        out = attend(*given, pattern, impl="native")
        return [out, *torch.autograd.grad(out, given, torch.ones_like(out))]

    found = computed()
    plan = pattern.tiles(length)
    grouped = Tiling(length, length, plan.groups, plan.borders)
    monkeypatch.setattr(P.Pattern, "tiles", lambda self, length: grouped)
    plans._fresh.cache_clear()
    wanted = computed()
    monkeypatch.undo()
    plans._fresh.cache_clear()
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_what_is_kept_is_counted():
    """Groups that nobody asked for are not made, and do not count."""
    pattern = P.Documents([40] * 50) & P.SlidingWindow(16)
    plan = plans.plan(pattern, 2000, False)
    assert plan.num_groups == 50
    assert plan.num_bytes < 1 << 14
    assert "groups" not in vars(pattern.tiles(2000))
