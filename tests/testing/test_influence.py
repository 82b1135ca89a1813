"""reach, assert_causal, assert_reaches: they see what is there and nothing else."""

import pytest
import torch
from torch import nn

from foveal.patterns.block_sparse import BlockSparse
from foveal.patterns.blocks import Blocks
from foveal.patterns.window import SlidingWindow
from foveal.testing import assert_causal, assert_reaches, reach

METHODS = ["gradient", "perturbation"]


@pytest.mark.parametrize("method", METHODS)
def test_finds_exactly_the_paths(method):
    """Cumulative sums, shifts, pooling and a constant function have the reach they must have."""
    ones = torch.ones(6, 6, dtype=torch.bool)
    assert torch.equal(reach(lambda x: x.cumsum(1), 6, method=method), ones.tril())
    shifted = reach(lambda x: torch.roll(x, 1, 1), 6, method=method)
    assert torch.equal(shifted, torch.eye(6).roll(1, 0).bool())
    pooled = reach(lambda x: x.unflatten(1, (3, 2)).mean(2), 6, method=method)
    assert torch.equal(pooled, torch.eye(3).repeat_interleave(2, 1).bool())
    assert not reach(lambda x: x * 0, 6, method="perturbation").any()


@pytest.mark.parametrize("method", METHODS)
def test_accidental_zeros_hide_nothing(method):
    """A hard ReLU that is off for one draw is on for another."""
    found = reach(lambda x: x[..., :1].relu(), 40, method=method, repeats=20)
    assert torch.equal(found, torch.eye(40).bool())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "pattern",
    [
        SlidingWindow(3),
        Blocks(4, lookback=1),
        BlockSparse(torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 0]]), 4, causal=False),
    ],
    ids=repr,
)
def test_reach_of_a_pattern_is_its_mask(pattern, method):
    """Attention by a pattern reaches what the pattern allows: queries that cannot see
    themselves and rows without any key included."""
    assert torch.equal(reach(pattern, 11, method=method), pattern.mask(11))
    assert_reaches(pattern, pattern.mask(11), method=method)


def test_weak_paths_are_seen():
    """A softmax weight of e^-20 still counts as influence by gradient."""
    faint = torch.tensor([1.0, 2e-9], dtype=torch.float64)[:, None]
    assert reach(lambda x: (x * faint).sum(1, keepdim=True), 2).all()


def test_assert_causal_names_the_leak():
    """A leak is found and named; a causal function passes."""
    assert_causal(lambda x: x.cumsum(1), 9)
    with pytest.raises(AssertionError, match="output 3 moves with input 4"):
        assert_causal(lambda x: x + torch.eye(9)[4].roll(-1)[:, None] * x.roll(-1, 1), 9)


def test_assert_reaches_names_leaks_and_losses():
    """What is too much and what is missing, with the first of each."""
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    with pytest.raises(AssertionError, match="lost, first output 1, input 0"):
        assert_reaches(lambda x: x, mask)
    with pytest.raises(AssertionError, match="leaked, first output 1, input 0"):
        assert_reaches(lambda x: x.cumsum(1), torch.eye(5).bool())
    with pytest.raises(AssertionError, match="shape"):
        assert_reaches(lambda x: x[:, :3], mask)


def test_dropout_free_module_with_parameters():
    """Any module on (1, length, dim) can be asked, and its parameters collect no gradient."""
    layer = nn.GRU(8, 8, batch_first=True).double()
    assert_causal(lambda x: layer(x)[0], 12)
    assert all(p.grad is None for p in layer.parameters())


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: reach(lambda x: x, 3, method="guess"), "method"),
        (lambda: reach(lambda x: x.detach(), 3), "perturbation"),
        (lambda: reach(lambda x: x / 0, 3), "finite"),
        (lambda: reach(lambda x: x[0], 3), "must return"),
        (lambda: reach(lambda x: x, 3, repeats=0), "repeats"),
    ],
)
def test_errors(call, says):
    """What cannot be tested is refused with a reason."""
    with pytest.raises(ValueError, match=says):
        call()


@pytest.mark.parametrize("method", METHODS)
def test_no_tokens(method):
    """An empty sequence reaches nothing."""
    assert reach(lambda x: x, 0, method=method).shape == (0, 0)
