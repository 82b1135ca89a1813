"""What is said of a public package whose checkpoints can be read, and written."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from foveal.compat.files import Checkpoint, Weights

Table = dict[str, str]
"""Names of a package's parameters -> ours; several of theirs may be one of ours."""


@dataclass(frozen=True)
class Upstream:
    """A public package whose checkpoints we read.

    Attributes:
        package: its name on the package index.
        compats: versions whose mathematics can be reproduced, faults included, as
            "<package>-<version>"; the first is the default.
        recognises: whether weights look like those of the package.
        build: (checkpoint, config, compat) -> the model with its weights; compat None asks for
            the corrected mathematics.
        writes: classes of models whose weights `save` gives under the package's names.
        save: the weights that the package loads strictly, with its buffers.

            Raises:
                ValueError: the package would compute something else with them.
    """

    package: str
    compats: tuple[str, ...]
    recognises: Callable[[Weights], bool]
    build: Callable[[Checkpoint, dict[str, Any], str | None], nn.Module]
    writes: tuple[type[nn.Module], ...] = ()
    save: Callable[[Any], Weights] | None = None


def take(config: dict[str, Any], inferred: dict[str, Any], package: str) -> dict[str, Any]:
    """Keywords read from the shapes of weights, checked against those that were given.

    Raises:
        ValueError: a keyword was given that contradicts the weights.
    """
    for name, value in inferred.items():
        given = config.get(name, value)
        given = tuple(given) if isinstance(given, (list, tuple)) else given
        if given != value:
            raise ValueError(
                f"config {name}={given!r} does not fit these {package} weights, which have "
                f"{name}={value!r}; leave it out."
            )
    return {**config, **inferred}


def to_ours(table: Table, weights: Weights) -> Weights:
    """A package's weights under our names; what the table does not know keeps its name.

    Raises:
        ValueError: two of theirs that are one of ours differ.
    """
    result: Weights = {}
    for theirs, value in weights.items():
        ours = table.get(theirs, theirs)
        if ours in result and not torch.equal(result[ours], value):
            raise ValueError(
                f"{theirs} differs from the layer it is said to share its weights with; check "
                "shared_attn_ids and shared_ff_ids."
            )
        result[ours] = value
    return result


def to_theirs(table: Table, weights: Weights) -> Weights:
    """Our weights under a package's names."""
    return {theirs: weights[ours] for theirs, ours in table.items()}


def must(package: str, **options: tuple[Any, Any]) -> None:
    """Raise ValueError for the first option that a package does not have.

    Args:
        options: name of a keyword -> (its value, the one that the package computes).
    """
    for name, (value, theirs) in options.items():
        if value != theirs:
            raise ValueError(
                f"{package} computes {name}={theirs!r} alone, got a model with {name}={value!r}; "
                "its weights would mean something else there."
            )


def load(model: nn.Module, weights: Weights, source: str) -> nn.Module:
    """Copy weights into a model, strictly, in their own dtype, and set it to evaluation.

    Weights of several dtypes take the widest of them, since a model computes in one.

    Raises:
        ValueError: names or shapes differ.
    """
    dtypes = [value.dtype for value in weights.values() if value.is_floating_point()]
    if dtypes:
        model.to(functools.reduce(torch.promote_types, dtypes))
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        faults = [line.strip() for line in str(error).splitlines()[1:] if line.strip()]
        shown = " ".join(faults[:3]) + (" ..." if len(faults) > 3 else "")
        raise ValueError(
            f"{source} does not fit the model it describes: {shown} Check package= and config=."
        ) from error
    return model.eval()
