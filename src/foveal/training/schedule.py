"""How far a run has come, and the learning rate there."""

from __future__ import annotations

import math

from foveal.training.config import OptimizerConfig, TrainingConfig

WARMUP_SHARE = 0.05
"""Most of a time budget that the learning rate may take to rise."""


def progress(training: TrainingConfig, step: int, elapsed: float) -> float:
    """The fraction of the budget that is used, from 0 to 1.

    Args:
        step: optimizer steps done.
        elapsed: seconds of training done, those before a resume included.
    """
    by_steps = step / training.steps if training.steps else 0.0
    return max(min(1.0, by_steps), time_used(training, elapsed))


def time_used(training: TrainingConfig, elapsed: float) -> float:
    """The fraction of the time budget that is used, from 0 to 1; 0 without one."""
    if training.time_budget is None:
        return 0.0
    return min(1.0, elapsed / training.time_budget) if training.time_budget else 1.0


def learning_rate(
    optimizer: OptimizerConfig, step: int, done: float, time_used: float = 0.0
) -> float:
    """Linear warm-up by steps, cosine decay by progress.

    Decaying by progress lets a wall-clock budget end its cosine in time on any machine; with a
    budget of steps alone it depends on nothing but the step, as bit-exact resuming needs. Nor may
    the warm-up take long on a machine that has time for few steps: WARMUP_SHARE of a time budget.

    Args:
        step: optimizer steps done.
        done: the fraction of the budget that is used.
        time_used: the fraction of the time budget that is used; 0 without one.
    """
    warmup = min(1.0, max((step + 1) / (optimizer.warmup_steps + 1), time_used / WARMUP_SHARE))
    cosine = 0.5 * (1.0 + math.cos(math.pi * done))
    floor = optimizer.final_fraction
    return optimizer.learning_rate * warmup * (floor + (1.0 - floor) * cosine)
