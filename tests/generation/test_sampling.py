"""Sampler: which tokens may be drawn, and how often."""

import math

import numpy as np
import pytest
import torch

from foveal.generation import Sampler

LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0, -9.0]])


def test_zero_temperature_is_greedy():
    """Temperature 0 takes the likeliest token, whatever the seed."""
    assert Sampler(temperature=0)(LOGITS).tolist() == [0]
    assert Sampler(temperature=0).probabilities(LOGITS).tolist() == [[1, 0, 0, 0, 0]]


@pytest.mark.parametrize("temperature", [1e-320, 1e-42, 1e-30, 1e-3, 0.5, 1.0, 7.0, 1e308])
def test_temperature_divides_logits(temperature):
    """Any positive temperature gives the softmax of logits / temperature, without overflow."""
    probs = Sampler(temperature).probabilities(LOGITS)
    expected = ((LOGITS - 2).double() / temperature).softmax(-1).float()
    torch.testing.assert_close(probs, expected)


def test_cuts():
    """top_k, top_p and min_p leave the likeliest tokens, and renormalise."""
    plain = LOGITS.softmax(-1)[0]
    for sampler, left in [
        (Sampler(top_k=2), 2),
        (Sampler(top_k=1), 1),
        (Sampler(top_k=99), 5),
        (Sampler(top_p=float(plain[0]) + 0.01), 2),
        (Sampler(top_p=1e-9), 1),
        (Sampler(top_p=1.0), 5),
        (Sampler(min_p=0.3), 2),
        (Sampler(min_p=1.0), 1),
        (Sampler(min_p=0.0), 5),
    ]:
        probs = sampler.probabilities(LOGITS)[0]
        assert int((probs > 0).sum()) == left, sampler
        torch.testing.assert_close(probs[:left], plain[:left] / plain[:left].sum())


@pytest.mark.parametrize("top_p", [5e-324, 1e-300, 1e-46, 1e-9])
def test_the_likeliest_token_always_stays(top_p):
    """However little top_p asks for, also less than float32 tells from nothing."""
    assert Sampler(top_p=top_p, top_k=np.int64(3)).probabilities(LOGITS).tolist()[0][:2] == [1, 0]


def test_ties_do_not_widen_top_k():
    """Exactly k tokens stay, even when all are equally likely."""
    assert int((Sampler(top_k=3).probabilities(torch.zeros(2, 9)) > 0).sum()) == 6


def test_draws_follow_the_distribution():
    """20,000 draws agree with the probabilities, and a seed repeats them."""
    sampler = Sampler(temperature=1.5, top_k=4)
    logits = LOGITS.expand(20_000, -1)
    draws = sampler(logits, torch.Generator().manual_seed(0))
    counts = draws.bincount(minlength=5) / 20_000
    assert (counts - sampler.probabilities(LOGITS)[0]).abs().max() < 0.02
    assert torch.equal(draws, sampler(logits, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.7}, {"temperature": 0.01}])
def test_draws_are_those_of_torch(dtype, options):
    """A seed draws what torch.multinomial draws from the probabilities with it."""
    sampler, logits = Sampler(**options), torch.randn(50, 20).to(dtype)
    expected = torch.multinomial(
        sampler.probabilities(logits), 1, generator=torch.Generator().manual_seed(3)
    )
    found = sampler(logits, torch.Generator().manual_seed(3))
    assert torch.equal(found, expected[:, 0])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_distribution_is_refused(value):
    """Logits of a broken model draw nothing, in whichever row they stand."""
    logits = torch.zeros(2, 5)
    logits[1, 2] = value
    with pytest.raises(RuntimeError, match="probability tensor contains"):
        Sampler()(logits)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": 0},
        {"top_k": 2.5},
        {"top_k": True},
        {"temperature": "hot"},
        {"temperature": True},
        {"top_p": "0.5"},
        {"seed": 1.5},
        {"seed": 1 << 64},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"min_p": math.nan},
    ],
    ids=str,
)
def test_nonsense_options(options):
    """A value outside its range is refused by name."""
    with pytest.raises(ValueError, match=next(iter(options))):
        Sampler(**options)
