"""Configurations: strict reading, and the schedule they describe."""

from itertools import pairwise

import pytest

from foveal.training.config import OptimizerConfig, TrainingConfig, check_training, from_dict
from foveal.training.schedule import learning_rate, progress


def test_values_are_read_with_their_types():
    """Whole numbers serve as floats, None where it is allowed."""
    config = from_dict(TrainingConfig, {"steps": 5, "time_budget": 3, "compile": True}, "x")
    assert config.time_budget == 3.0
    assert isinstance(config.time_budget, float)
    assert config.steps == 5
    assert from_dict(TrainingConfig, {"steps": None}, "x").steps is None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"stpes": 5}, r"unknown key 'stpes' in \[training\]; did you mean 'steps'\?"),
        ({"steps": "5"}, r"steps in \[training\] must be a whole number or left out, got '5'"),
        ({"steps": True}, "steps .* must be a whole number"),
        ({"batch_size": 2.0}, "batch_size .* must be a whole number, got 2.0"),
        ({"steps": 10**30}, "steps .* must be a whole number or left out, got 1000"),
        ({"steps": 10**5000}, "got an int too large to show"),
        ({"time_budget": float("nan")}, "time_budget .* must be a number or left out, got nan"),
        ({"time_budget": float("inf")}, "got inf"),
        ({"time_budget": "3 minutes"}, "must be a number or left out, got '3 minutes'"),
        ({"compile": "false"}, "compile .* must be true or false, got 'false'"),
        ({"compile": 1}, "compile .* must be true or false, got 1"),
        ({"batch_size": [8]}, r"must be a whole number, got \[8\]"),
        ({"precision": ["auto"]}, r"got \['auto'\]"),
        ({"precision": "x" * 500}, r"got 'x{56}\.\.\."),
        ({"precision": "float16"}, "'auto' or 'float32' or 'bfloat16', got 'float16'"),
    ],
)
def test_mistakes_name_the_key_and_the_fix(values, words):
    """A misspelt key or a wrong type is one line that says where and what instead."""
    with pytest.raises(ValueError, match=words):
        from_dict(TrainingConfig, values, "[training]")


@pytest.mark.parametrize(
    ("training", "optimizer", "words"),
    [
        ({}, {}, "needs a budget"),
        ({"steps": 0}, {}, "training.steps must be at least 1, got 0"),
        ({"steps": 1, "keep": 0}, {}, "training.keep"),
        ({"steps": 1, "batch_size": -3}, {}, "training.batch_size .* got -3"),
        ({"steps": 1}, {"learning_rate": float("nan")}, "optimizer.learning_rate"),
        ({"steps": 1}, {"learning_rate": float("inf")}, "optimizer.learning_rate must be below"),
        ({"time_budget": 0.0}, {}, "time_budget must be a number of seconds above 0, got 0.0"),
        ({"time_budget": -5.0}, {}, "time_budget must be a number of seconds above 0"),
        ({"time_budget": float("nan")}, {}, "time_budget must be a number of seconds above 0"),
        ({"steps": 1, "batch_size": 10**12}, {}, "batch_size must be at most 1,000,000"),
        ({"steps": 1}, {"beta2": 1.5}, "optimizer.beta2 must be from 0 to 1, got 1.5"),
        ({"steps": 1}, {"momentum": float("nan")}, "optimizer.momentum must be from 0 to 1"),
        ({"steps": 1}, {"final_fraction": -0.1}, "optimizer.final_fraction"),
        ({"steps": 1}, {"epsilon": 0.0}, "optimizer.epsilon must be above 0"),
    ],
)
def test_values_that_make_no_run_are_refused(training, optimizer, words):
    """Budgets, sizes and rates are checked before anything starts."""
    with pytest.raises(ValueError, match=words):
        check_training(TrainingConfig(**training), OptimizerConfig(**optimizer))


def test_whichever_budget_ends_first_counts():
    """Progress is the larger of steps and time, and ends at 1."""
    both = TrainingConfig(steps=100, time_budget=50.0)
    assert progress(both, 10, 20.0) == 0.4
    assert progress(both, 80, 20.0) == 0.8
    assert progress(both, 300, 20.0) == 1.0
    assert progress(TrainingConfig(steps=10), 5, 1e9) == 0.5
    assert progress(TrainingConfig(time_budget=0.0), 0, 0.0) == 1.0


def test_the_learning_rate_rises_and_falls():
    """Warm-up by steps, cosine to the floor by progress."""
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=9, final_fraction=0.1)
    rates = [learning_rate(config, step, step / 100) for step in range(101)]
    assert rates[0] == pytest.approx(0.1, rel=1e-3)
    assert max(rates) == rates[9]
    assert all(a > b for a, b in pairwise(rates[9:]))
    assert rates[100] == pytest.approx(0.1)
    assert learning_rate(config, 1000, 0.5) == pytest.approx(0.55)


def test_the_warm_up_takes_no_more_than_a_share_of_a_time_budget():
    """A slow machine that has time for few steps does not spend them on warming up."""
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=99, final_fraction=1.0)
    assert learning_rate(config, 0, 0.0, 0.0) == pytest.approx(0.01)
    assert learning_rate(config, 2, 0.025, 0.025) == pytest.approx(0.5)
    assert learning_rate(config, 4, 0.05, 0.05) == 1.0
    assert learning_rate(config, 99, 0.01, 0.01) == 1.0
