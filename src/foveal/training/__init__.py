"""Training: the loop on Accelerate, budgets, checkpoints that survive a kill, metrics.

Names load on first use, so that reading a configuration does not wait for Accelerate.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from foveal.training.config import OptimizerConfig, TrainingConfig

if TYPE_CHECKING:
    from foveal.training.checkpoints import CheckpointError
    from foveal.training.interrupt import Interrupted
    from foveal.training.trainer import Outcome, Trainer, make_accelerator

_HOMES = {
    "CheckpointError": "checkpoints",
    "Interrupted": "interrupt",
    "Outcome": "trainer",
    "Trainer": "trainer",
    "make_accelerator": "trainer",
}

__all__ = [
    "CheckpointError",
    "Interrupted",
    "OptimizerConfig",
    "Outcome",
    "Trainer",
    "TrainingConfig",
    "make_accelerator",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
