"""Strided and Fixed, the patterns of the Sparse Transformer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.patterns.fixed import Fixed
from foveal.patterns.strided import Strided
from foveal.testing import assert_pattern

LENGTHS = st.sampled_from([0, 1, 2, 7, 31, 63, 64, 65, 97, 128, 131, 200])


@settings(max_examples=40, deadline=None)
@given(stride=st.integers(1, 140), causal=st.booleans(), length=LENGTHS)
def test_strided_contract(stride, causal, length):
    """Every view agrees with `allows`, whatever divides what."""
    assert_pattern(Strided(stride, causal), length)


@settings(max_examples=40, deadline=None)
@given(stride=st.integers(1, 140), part=st.floats(0, 1), causal=st.booleans(), length=LENGTHS)
def test_fixed_contract(stride, part, causal, length):
    """Every view agrees with `allows`, whatever divides what."""
    assert_pattern(Fixed(stride, max(1, round(part * stride)), causal), length)


def test_strided_by_hand():
    """Query 7 with stride 3 reads its window 5, 6, 7 and the tokens 4 and 1 in step with it."""
    assert Strided(3).reads(7).tolist() == [1, 4, 5, 6, 7]
    assert Strided(3, causal=False).mask(8)[3].nonzero()[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_fixed_by_hand():
    """Query 9 with blocks of 4 reads 8, 9 and the last token of the blocks before."""
    assert Fixed(4, 1).reads(9).tolist() == [3, 7, 8, 9]
    assert Fixed(4, 1).keeps(9).tolist() == [3, 7, 8, 9]
    # the next token opens a block, so of the finished one only its summary is kept
    assert Fixed(4, 1).keeps(11).tolist() == [3, 7, 11]


@pytest.mark.parametrize("causal", [True, False])
def test_long_plans_are_few_groups_and_near_the_pairs(causal):
    """At 16,384 tokens: a handful of groups, masks shared, and far less than n^2 visited."""
    length = 16384
    strided, fixed = Strided(128, causal), Fixed(128, 16, causal)
    plan = strided.tiles(length)
    assert plan.num_pairs == strided.num_pairs(length)
    assert plan.visited < 9 * strided.num_pairs(length)
    assert len(plan.groups) < 100
    plan = fixed.tiles(length)
    assert plan.num_pairs == fixed.num_pairs(length)
    assert plan.visited < 1.1 * fixed.num_pairs(length)
    storages = {g.mask.untyped_storage().data_ptr() for g in plan.groups if g.mask is not None}
    assert len(storages) <= 2


def test_counts_at_a_length_no_mask_could_hold():
    """Closed forms: a million tokens are counted at once, and exactly."""
    length, stride = 1_000_003, 1000
    per_query = torch.arange(length)
    expected = (per_query.clamp(max=stride - 1) + 1 + per_query // stride).sum()
    assert Strided(stride).num_pairs(length) == int(expected)
    expected = (per_query % stride + 1 + per_query // stride * 10).sum()
    assert Fixed(stride, 10).num_pairs(length) == int(expected)


@pytest.mark.parametrize(
    ("build", "names"),
    [
        (lambda: Strided(0), "stride"),
        (lambda: Strided(2.0), "stride"),
        (lambda: Fixed(4, 0), "summary"),
        (lambda: Fixed(4, 5), "summary"),
        (lambda: Strided(4, causal=False).reads(3), "causal"),
        (lambda: Fixed(4, 2, causal=False).keeps(3), "causal"),
    ],
)
def test_errors_name_the_argument(build, names):
    """Bad input raises ValueError with the argument's name."""
    with pytest.raises(ValueError, match=names):
        build()
