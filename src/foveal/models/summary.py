"""What a notebook shows of a model: its parts, and who attends to whom in its layers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from torch import nn

from foveal.common import html
from foveal.patterns import Pattern


def summary(model: nn.Module) -> str:
    """Tables of a model's parts with their shares of the parameters, and of its patterns."""
    whole = _count(model)
    named = {name: part for name, part in model.named_children() if _count(part)}
    parts = [
        (name, type(part).__name__, _count(part), html.Share(_count(part) / whole))
        for name, part in named.items()
    ]
    title = f"{type(model).__name__}: {whole:,} parameters"
    found = html.table(parts, title=title, head=("part", "class", "parameters", "of all"))
    patterns = list(_patterns(model))
    if patterns:
        head = ("layers", "class", "number", "pattern")
        found += html.table(patterns, title="who attends to whom", head=head)
    return found


def _patterns(model: nn.Module) -> Iterator[tuple[str, str, int, str]]:
    """(first and last, class, how many, pattern) of layers in a row that have the same one."""
    layers = [
        (name, type(layer).__name__, repr(pattern))
        for name, layer in model.named_modules()
        if isinstance(pattern := getattr(layer, "pattern", None), Pattern)
    ]
    for (kind, pattern), group in itertools.groupby(layers, lambda one: one[1:]):
        names = [name for name, *_ in group]
        shown = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
        yield shown, kind, len(names), pattern


def _count(module: Any) -> int:
    return sum(p.numel() for p in module.parameters())
