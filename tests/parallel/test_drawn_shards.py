"""Patterns drawn at random on up to 64 ranks, beside a formula that shares no code with foveal.

The suite draws a few. More, or others, or one that failed:

    FOVEAL_CASES=1000 FOVEAL_SEED=7 python -m pytest tests/parallel/test_drawn_shards.py -q
    FOVEAL_CASE=7-123 python -m pytest tests/parallel/test_drawn_shards.py -q
"""

import os
import random

import pytest
import torch
from drawn_patterns import any_pattern
from oracle import Case, allowed_pairs, formula

from foveal import parallel
from foveal import patterns as P
from foveal.patterns.needs import listed, merged, runs_in, together

COUNT = int(os.environ.get("FOVEAL_CASES", "9"))
SEED = os.environ.get("FOVEAL_SEED", "0")
ONE = os.environ.get("FOVEAL_CASE")


def cut_anywhere(draw, length, ranks):
    """Tokens of each rank: any numbers, zero among them."""
    borders = sorted(draw.choices(range(length + 1), k=ranks - 1))
    return tuple(b - a for a, b in zip([0, *borders], [*borders, length], strict=True))


def drawn(word):
    """(pattern, keys, queries, parts of both, draw)"""
    draw = random.Random(f"shards {word}")
    heads = draw.choice((1, 2, 4))
    pattern, length = any_pattern(draw, heads)
    while isinstance(pattern, P.Packed) and pattern.query_lengths is not None:
        pattern, length = any_pattern(draw, heads)
    queries = length if pattern.pools else pattern.num_queries(length)
    ranks = draw.choice((2, 3, 4, 7, 16, 64)) if not pattern.pools else draw.choice((2, 3, 4))
    if pattern.pools:
        ranks = min(ranks, length)
        sizes = tuple(1 + n for n in cut_anywhere(draw, length - ranks, ranks))
    else:
        sizes = cut_anywhere(draw, length, ranks)
    own = sizes if queries == length else cut_anywhere(draw, queries, ranks)
    return draw, pattern, heads, length, queries, sizes, own


def check_needs(word):
    """Exactly the keys that a pair of the definition has, for each rank and an odd stretch."""
    draw, pattern, _, length, queries, _, own = drawn(word)
    if pattern.pools:
        return
    i, j = torch.arange(queries).repeat_interleave(length), torch.arange(length).repeat(queries)
    pairs = allowed_pairs(pattern, i, j).expand(pattern.heads or 1, -1)
    mask = pairs.view(-1, queries, length).any(0)
    first = 0
    stretches = [sorted(draw.choices(range(queries + 1), k=2))]
    for count in own[:8]:
        stretches.append((first, first + count))
        first += count
    for low, high in stretches:
        found = listed(pattern.needs(low, high, length))
        assert torch.equal(found, mask[low:high].any(0).nonzero()[:, 0]), (pattern, low, high)


def check_attend(word):
    """Output, log-sum-exp and gradients of the ranks are those of the formula, to 1e-10."""
    draw, pattern, heads, length, queries, sizes, own = drawn(word)
    torch.manual_seed(draw.randrange(1 << 30))
    heads = pattern.heads or heads
    kv_heads = draw.choice([n for n in (1, 2, 4) if heads % n == 0])
    shapes = {"q": (2, heads, queries, 8), "k": (2, kv_heads, length, 8)}
    shapes["v"] = (2, kv_heads, length, 6)
    tensors = {
        name: torch.randn(shape, dtype=torch.float64).requires_grad_()
        for name, shape in shapes.items()
    }
    options = {"softcap": 3.0} if draw.random() < 0.2 else {}
    if draw.random() < 0.3:
        options["key_mask"] = torch.rand(2, length) > 0.3
    case = Case(word, pattern, tensors, None, dict(options))
    weights = torch.randn(2, heads, queries, 6, dtype=torch.float64)
    out, lse = formula(case, tensors)

    def loss(out, lse, part):
        finite = torch.where(lse.isfinite(), lse, 0.0)
        return (out * weights[:, :, part]).sum() + finite.sin().sum()

    loss(out, lse, slice(None)).backward()

    def act(rank):
        number = rank.rank
        at, q_at = sum(sizes[:number]), sum(own[:number])
        part, q_part = slice(at, at + sizes[number]), slice(q_at, q_at + own[number])
        mine = {
            name: x.detach()[:, :, q_part if name == "q" else part].clone().requires_grad_()
            for name, x in tensors.items()
        }
        given = dict(options)
        if "key_mask" in given:
            given["key_mask"] = given["key_mask"][:, part]
        found = parallel.attend(*mine.values(), pattern, rank, return_lse=True, **given)
        loss(*found, q_part).backward()
        return [x.detach() for x in found] + [x.grad for x in mine.values()]

    got = [torch.cat(one, 2) for one in zip(*parallel.simulate(len(sizes), act), strict=True)]
    wanted = [out, lse, *(x.grad for x in tensors.values())]
    for a, b in zip(got, wanted, strict=True):
        a, b = (x.detach().nan_to_num(neginf=-99.0) for x in (a, b))
        assert float((a - b).abs().max() if a.numel() else 0.0) < 1e-10, (pattern, sizes, own)


@pytest.mark.parametrize("check", [check_needs, check_attend])
def test_drawn_patterns_on_many_ranks(check):
    """Nestings, images, documents and layouts, over up to 64 ranks with parts of any length."""
    for number in range(COUNT):
        check(ONE or f"{SEED}-{number}")


def test_many_runs_are_merged_alike():
    """By sorting or by counting."""
    draw = torch.Generator().manual_seed(3)
    low = torch.randint(0, 90_000, (5000,), generator=draw)
    high = low + torch.randint(1, 20, (5000,), generator=draw)
    runs = merged([(low, high)])
    places = torch.cat([torch.arange(a, b) for a, b in zip(low, high, strict=True)])
    assert runs == runs_in(places)
    assert together([runs[:50], runs[30:], ()]) == runs
