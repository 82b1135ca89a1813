"""What a run that has ended says about itself: result.json."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from foveal.patterns import Pattern
from foveal.patterns.serialize import to_config
from foveal.recipes.runs import write_json
from foveal.training.machine import describe_machine

if TYPE_CHECKING:
    from foveal.training.trainer import Outcome

RESULT, EVALUATION, SAMPLES = "result.json", "evaluation.json", "samples.json"
"""Files of a run folder: how training ended, the newest score, what a language model wrote."""


def write_result(folder: Path, task: Any, outcome: Outcome, device: torch.device) -> None:
    """Keep how a run ended, and on which machine.

    Args:
        task: a `foveal.training.task.Task` with `facts()`, label -> text.
    """
    result = {
        "steps": outcome.step,
        "seconds": round(outcome.elapsed, 1),
        **outcome.metrics,
        "patterns": patterns_of(task.model),
        "facts": task.facts(),
        "machine": describe_machine(device),
    }
    write_json(folder / RESULT, result)


def patterns_of(model: nn.Module) -> list[dict[str, Any]]:
    """The distinct patterns in a model's layers, as plain data, in order."""
    found: list[Pattern] = []
    for module in model.modules():
        pattern = getattr(module, "pattern", None)
        if isinstance(pattern, Pattern) and pattern not in found:
            found.append(pattern)
    return [to_config(pattern) for pattern in found]
