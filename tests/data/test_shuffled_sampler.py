"""The sampler: a true permutation, disjoint between processes, resumable to the bit."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.data.sampling import ShuffledSampler, permute


@settings(deadline=None, max_examples=60)
@given(size=st.integers(1, 3000), key=st.integers(0, 2**60))
def test_permute_is_a_permutation(size, key):
    """Every index appears exactly once, for every size and key."""
    out = permute(np.arange(size), size, key)
    assert sorted(out) == list(range(size))


def test_permute_shuffles_and_depends_on_the_key():
    """Neighbours are sent apart, and another key gives another order."""
    one, two = (permute(np.arange(10_000), 10_000, key) for key in (1, 2))
    assert abs(np.corrcoef(one, np.arange(10_000))[0, 1]) < 0.05
    assert (one == two).mean() < 0.01
    assert np.abs(np.diff(one)).mean() > 2500


def deal(sampler: ShuffledSampler, batches: int) -> list[int]:
    return [int(i) for _ in range(batches) for i in sampler.next()[0]]


def test_each_pass_sees_everything_once_in_a_new_order():
    """Passes cover the data exactly, even where the batch size does not divide it."""
    dealt = deal(ShuffledSampler(15, batch_size=4, seed=3), 15)
    passes = [dealt[i : i + 15] for i in range(0, 60, 15)]
    assert all(sorted(one) == list(range(15)) for one in passes)
    assert len({tuple(one) for one in passes}) == 4


@pytest.mark.parametrize("world", [2, 3, 5])
def test_processes_see_disjoint_data(world):
    """Together the processes deal what one would, without overlap within a pass."""
    samplers = [ShuffledSampler(60, 2, 1, rank, world) for rank in range(world)]
    together = [int(i) for _ in range(60 // (2 * world)) for s in samplers for i in s.next()[0]]
    assert together == deal(ShuffledSampler(60, 2, 1), 30)
    assert sorted(together) == list(range(60))


def test_it_resumes_at_its_position():
    """A state that went through JSON continues with exactly the same batches."""
    sampler = ShuffledSampler(100, 7, seed=5)
    deal(sampler, 33)
    state = json.loads(json.dumps(sampler.state_dict()))
    resumed = ShuffledSampler(100, 7, seed=5)
    resumed.load_state_dict(state)
    assert deal(resumed, 20) == deal(sampler, 20)


def test_a_state_of_other_data_is_refused():
    """Resuming on changed data or with another seed names what differs."""
    state = ShuffledSampler(100, 7, seed=5).state_dict()
    with pytest.raises(ValueError, match=r"num_items=100.*num_items=99"):
        ShuffledSampler(99, 7, seed=5).load_state_dict(state)
    with pytest.raises(ValueError, match=r"seed=5.*seed=6"):
        ShuffledSampler(100, 7, seed=6).load_state_dict(state)
