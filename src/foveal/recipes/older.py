"""Runs that an earlier foveal began: what their settings mean in today's words."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveal.recipes.config import config_from_dict
from foveal.recipes.runs import CHECKPOINTS, CONFIG, read_settings
from foveal.recipes.settings import RunConfig
from foveal.training import checkpoints
from foveal.training.processes import launched


def config_to_go_on(folder: Path) -> RunConfig:
    """The configuration of a run that shall go on, its batch that of a whole step.

    Raises:
        ValueError: config.json is damaged, or no configuration.
    """
    found = checkpoints.checkpoints(folder / CHECKPOINTS)
    values = with_whole_batch(read_settings(folder), found[-1] if found else None, tell=True)
    return config_from_dict(values, where=str(folder / CONFIG))


def with_whole_batch(
    values: Mapping[str, Any], checkpoint: Path | None, tell: bool = False
) -> Mapping[str, Any]:
    """Settings in which `training.batch_size` is the examples of an optimizer step.

    Before settings had a table [parallel], it was those of each process and micro-batch.

    Args:
        values: of a run, as it was written.
        checkpoint: that they belong to; without one, as many processes are meant as there are.
        tell: warn, where that changes the number.
    """
    training = values.get("training", {})
    if "parallel" in values or not isinstance(training, Mapping):
        return values
    share, accumulate = training.get("batch_size"), training.get("accumulate", 1)
    processes = _processes(checkpoint)
    if not isinstance(share, int) or not isinstance(accumulate, int):
        return values  # which is told when they are read
    whole = share * accumulate * processes
    if tell and whole != share:
        warnings.warn(
            f"this run was begun when training.batch_size={share} meant each of {processes} "
            f"processes and {accumulate} micro-batches; its steps go on to see {whole} examples, "
            f"which is now training.batch_size={whole}.",
            stacklevel=2,
        )
    return {**values, "training": {**training, "batch_size": whole}}


def _processes(checkpoint: Path | None) -> int:
    """How many trained a run."""
    if checkpoint is None:
        return launched()
    try:
        found = checkpoints.load_state(checkpoint).get("processes", 1)
    except (OSError, ValueError):  # damaged: another one is taken, or it is told by name
        return 1
    return found if isinstance(found, int) else 1
