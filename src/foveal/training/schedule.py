"""How far a run has come, and the learning rate there."""

from __future__ import annotations

import math

from foveal.training.config import OptimizerConfig, TrainingConfig


def progress(training: TrainingConfig, step: int, elapsed: float) -> float:
    """The fraction of the budget that is used, from 0 to 1.

    Args:
        step: optimizer steps done.
        elapsed: seconds of training done, those before a resume included.
    """
    by_steps = step / training.steps if training.steps else 0.0
    by_time = 0.0
    if training.time_budget is not None:
        by_time = elapsed / training.time_budget if training.time_budget else 1.0
    return min(1.0, max(by_steps, by_time))


def learning_rate(optimizer: OptimizerConfig, step: int, done: float) -> float:
    """Linear warm-up by steps, cosine decay by progress.

    Decaying by progress lets a wall-clock budget end its cosine in time on any machine; with a
    budget of steps alone it depends on nothing but the step, as bit-exact resuming needs.
    """
    warmup = min(1.0, (step + 1) / (optimizer.warmup_steps + 1))
    cosine = 0.5 * (1.0 + math.cos(math.pi * done))
    floor = optimizer.final_fraction
    return optimizer.learning_rate * warmup * (floor + (1.0 - floor) * cosine)
