"""Documents that share a row: what they are, their plans, and what plans hold."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal import patterns as P
from foveal.patterns import bands, base
from foveal.patterns.serialize import parse
from foveal.testing import assert_pattern

LENGTHS = st.lists(st.sampled_from((0, 1, 2, 5, 13, 63, 64, 65, 97)), max_size=6)
WITHIN = [
    P.Full(),
    P.Full(causal=True),
    P.SlidingWindow(5),
    P.SlidingWindow(70, causal=False),
    P.Strided(4),
    P.Strided(7, causal=False),
    P.SlidingWindow(3) | P.Strided(6),
    P.SlidingWindow(9) & P.Strided(2),
    P.Blocks(6, causal=True, lookback=1),
    P.Fixed(8, 2),
    P.BlockSparse(torch.rand(2, 90, 90, generator=torch.Generator().manual_seed(1)) < 0.4, 7),
]


@settings(max_examples=25, deadline=None)
@given(LENGTHS, st.sampled_from(WITHIN), st.integers(0, 40))
def test_contract(lengths, within, padding):
    """Documents under any pattern keep every promise of one, with padding after the last."""
    assert_pattern(P.Documents(lengths) & within, sum(lengths) + padding)


@settings(max_examples=25, deadline=None)
@given(LENGTHS, st.sampled_from(WITHIN), st.integers(0, 3))
def test_contract_of_packed(lengths, within, fewer):
    """So does a pattern that restarts in each document, with fewer queries than keys too."""
    queries = None if fewer == 0 else [max(0, length - fewer) for length in lengths]
    assert_pattern(P.Packed(within, lengths, queries), sum(lengths))


def test_by_hand():
    """Which pairs are allowed, written out: positions of the row, and restarting."""
    first = P.Documents((2, 0, 3)).mask(6).int().tolist()
    assert first[:2] == [[1, 1, 0, 0, 0, 0]] * 2
    assert first[2:] == [[0, 0, 1, 1, 1, 0]] * 3 + [[0] * 6]
    inside = (P.Documents((3, 3)) & P.Blocks(2)).mask(6).int().tolist()
    assert inside[2:4] == [[0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0]]
    again = P.Packed(P.Blocks(2), (3, 3)).mask(6).int().tolist()
    assert again[2:4] == [[0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 1, 0]]


def test_queries_are_the_last_of_their_document():
    """Fewer queries than keys stand at the end, more of them before all keys."""
    later = P.Packed(P.Full(causal=True), (5, 3), (2, 3)).mask(5, 8).int()
    assert later[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    early = P.Packed(P.SlidingWindow(2), (1, 2), (3, 2)).mask(5, 3).int()
    assert early.tolist() == [[0, 0, 0], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 1]]
    assert_pattern(P.Packed(P.SlidingWindow(2), (1, 2, 0), (3, 2, 1)), 3)
    with pytest.raises(ValueError, match="has 2 queries for the 2 keys of a document, got 3"):
        P.Packed(P.Blocks(4), (2,), (3,))


@pytest.mark.parametrize(
    "lengths",
    [(3, 0, 5), [3, 0, 5], np.array([3, 0, 5]), torch.tensor([3, 0, 5]), [np.int32(3), 0, 5]],
)
def test_kinds_of_lengths(lengths):
    """Tuples, lists, arrays and tensors say the same, and so do borders and text."""
    wanted = P.Documents((3, 0, 5))
    assert P.Documents(lengths) == wanted
    assert hash(P.Documents(lengths)) == hash(wanted)
    borders = np.cumsum([0, *(int(one) for one in lengths)])
    assert P.Documents.from_cu_seqlens(borders) == wanted
    assert P.Documents.from_cu_seqlens(torch.tensor(borders, dtype=torch.int32)) == wanted
    assert parse("Documents.from_cu_seqlens((0, 3, 3, 8))") == parse(repr(wanted)) == wanted


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: P.Documents((3, -1)), r"lengths\[1\] must be an int of at least 0, got .*-1"),
        (lambda: P.Documents((3, 1.5)), r"lengths\[1\] must be an int .*1\.5"),
        (lambda: P.Documents((3, True)), r"lengths\[1\] must be an int .*True"),
        (lambda: P.Documents(7), "lengths must be a list of ints, got lengths=7"),
        (lambda: P.Documents("37"), "lengths must be a list of ints"),
        (lambda: P.Documents(torch.zeros(2, 2)), r"lengths\[0\] must be an int"),
        (lambda: P.Documents.from_cu_seqlens((1, 2)), "cu_seqlens must begin with 0"),
        (lambda: P.Documents.from_cu_seqlens(()), "cu_seqlens must begin with 0"),
        (lambda: P.Documents.from_cu_seqlens((0, 5, 3)), "must not fall, got 3 after 5"),
        (lambda: P.Documents((3, 5)).tiles(7), "hold all of its documents, got 7 tokens for 2"),
        (lambda: P.Packed(P.Full(), (3, 5)).tiles(9), "as long as its 2 documents of 8 tokens"),
        (lambda: P.Packed(P.Full(), (3, 5), (3,)), "must name as many documents, got 2 and 1"),
        (lambda: P.Packed(P.Pyramid(4), (3, 5)), "read keys one by one to be packed.*Pyramid"),
        (lambda: P.Packed("Full", (3,)), "pattern must be a Pattern, got 'Full'"),
        (lambda: P.Packed(P.Halo((4, 4), 2, 1), (16, 17)), "length"),
    ],
)
def test_errors(call, says):
    """What is wrong is told by name, with what was expected."""
    with pytest.raises(ValueError, match=says):
        call()


@pytest.mark.parametrize("within", WITHIN[:8], ids=repr)
def test_no_tile_holds_two_documents(within):
    """Whatever stands in one document cannot reach a product of another one."""
    lengths = (70, 1, 0, 33, 130)
    owner = torch.arange(5).repeat_interleave(torch.tensor(lengths))
    for pattern in (P.Documents(lengths) & within, P.Packed(within, lengths)):
        for group in pattern.tiles(sum(lengths)).groups:
            read = owner[torch.cat([group.queries.index(), group.key_index()], 1)]
            assert bool((read == read[:, :1]).all())


def test_tiles_of_equal_masks_are_one_group():
    """A plan grows with the kinds of tiles that it has, not with the documents."""
    pattern = P.Documents([256] * 32) & P.Full(causal=True)
    assert len(pattern.tiles(8192).groups) == 4
    draw = random.Random(1)
    mixed = [draw.randint(1, 500) for _ in range(32)]
    groups = (P.Documents(mixed) & P.SlidingWindow(64)).tiles(sum(mixed)).groups
    assert len(groups) < 64  # two a document at most, and few of these


def test_pairs_are_counted_without_a_plan(monkeypatch):
    """Of patterns that are the same wherever they are shifted, pairs need no look at tiles."""
    monkeypatch.setattr(P.Pattern, "tiles", None)
    lengths = (10**6, 3, 10**6)
    assert P.Documents(lengths).num_pairs(2 * 10**6 + 3) == 2 * 10**12 + 9
    assert (P.Documents(lengths) & P.SlidingWindow(2)).num_pairs(2 * 10**6 + 3) == 4 * 10**6 + 3


def test_decoding_forgets_documents():
    """A new token reads its own document, and a cache holds no earlier one."""
    pattern = P.Documents((4, 3)) & P.Full(causal=True)
    assert pattern.reads(5).tolist() == [4, 5]
    assert torch.as_tensor(pattern.keeps(5)).tolist() == [4, 5]
    assert torch.as_tensor(pattern.keeps(3)).tolist() == []
    assert pattern.horizon() == (0, 4)


def test_other_definitions_are_not_taken_for_these():
    """A subclass with another `allows` gets plans of its own."""

    class Loose(P.Documents):
        def allows(self, q_idx, k_idx):
            return super().allows(q_idx, k_idx) | (k_idx == 0)

    class Late(P.SlidingWindow):
        def allows(self, q_idx, k_idx):
            return super().allows(q_idx, k_idx) & (q_idx > 9)

    assert_pattern(Loose((5, 9)) & P.Full(), 14)
    assert_pattern(P.Documents((5, 9)) & Late(4), 14)


def test_plans_of_packs_hold_little():
    """Packs differ in every batch: 300 of them leave a bounded number of bytes behind."""
    base._fresh_tiles.cache_clear()
    draw = random.Random(2)
    for _ in range(300):
        lengths = [draw.randint(1, 60) for _ in range(20)]
        (P.Documents(lengths) & P.SlidingWindow(16)).tiles(sum(lengths))
    entries, held = base._fresh_tiles.cache_info()
    assert entries <= 16
    assert held <= 16 << 20
    assert bands._tile_mask.cache_info()[1] <= 32 << 20


def test_block_mask_looks_at_blocks_only(monkeypatch):
    """FlexAttention's mask comes of borders, and has the blocks of the documents."""
    pattern = P.Documents((300, 212)) & P.Full(causal=True)
    monkeypatch.setattr(P.Documents, "mask", None)
    dense = pattern.block_mask(512).to_dense()[0, 0]
    assert dense.tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1]]


@pytest.mark.parametrize("make", [P.Documents, P.Documents.from_cu_seqlens])
def test_lengths_without_values_are_refused(make):
    """A tensor on the meta device has no numbers to read."""
    with pytest.raises(ValueError, match="must hold values, got a tensor on the meta device"):
        make(torch.tensor([0, 3], device="meta"))
