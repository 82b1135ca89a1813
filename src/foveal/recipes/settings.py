"""The complete settings of a run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from foveal.data.text import TextConfig
from foveal.training.config import OptimizerConfig, TrainingConfig
from foveal.training.layout import ParallelConfig

SECTIONS = ("model", "data", "optimizer", "training", "parallel")
"""Tables of a recipe."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides a run.

    Attributes:
        recipe: the recipe it came from: a shipped name, or a path.
        task: what is trained; see `foveal.recipes.kind.find_kind`.
        model: `name` of a model, and its constructor's arguments as TOML and JSON can hold them.
        data: where the examples come from; the task's own dataclass.
        optimizer, training, parallel: see there.
    """

    recipe: str
    task: str = "bytes"
    model: dict[str, Any] = field(default_factory=dict)
    data: Any = field(default_factory=TextConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain


def first_difference(saved: Mapping[str, Any], given: Mapping[str, Any]) -> str | None:
    """The first setting, as 'a.b', in which two configurations would train differently.

    Budgets may differ, so that a finished run can be prolonged, and so may what only watches.
    """
    for section in sorted({*saved, *given} - {"recipe"}):
        left, right = saved.get(section), given.get(section)
        if not isinstance(left, Mapping) or not isinstance(right, Mapping):
            if left != right:
                return section
            continue
        for key in sorted({*left, *right}):
            if f"{section}.{key}" not in _MAY_CHANGE and left.get(key) != right.get(key):
                return f"{section}.{key}"
    return None


_MAY_CHANGE = {
    *("training.steps", "training.time_budget", "training.log_every", "training.evaluate_every"),
    *("training.checkpoint_every", "training.checkpoint_seconds", "training.keep"),
    *("training.device", "training.compile", "training.trackers"),
    *("training.activation_checkpointing", "training.loss_chunk"),
    *("parallel.shard", "parallel.sequence", "training.prefetch", "training.accumulate"),
}
