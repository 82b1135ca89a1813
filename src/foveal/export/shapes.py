"""What a program says of its inputs: names, dtypes, and the sizes that vary."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.export import ExportedProgram


class Shape(NamedTuple):
    """A size that varies: the symbol's name, and what it is."""

    name: str

    def at(self, sizes: dict[str, int]) -> int:
        return sizes[self.name]


class Found(NamedTuple):
    """One input: shape of ints and of sizes that vary; by_name: it is passed by its name."""

    name: str
    dtype: torch.dtype
    shape: tuple[int | Shape, ...]
    by_name: bool


def _nodes(program: ExportedProgram) -> list[Any]:
    wanted = program.graph_signature.user_inputs
    by_name = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    return [by_name[str(name)] for name in wanted]


def inputs_in(program: ExportedProgram) -> list[Found]:
    """The inputs of a program, in order."""
    kwargs = set(program.example_inputs[1]) if program.example_inputs else set()
    found = []
    for node in _nodes(program):
        value = node.meta["val"]
        shape = tuple(one if isinstance(one, int) else Shape(str(one)) for one in value.shape)
        found.append(Found(node.name, value.dtype, shape, node.name in kwargs))
    return found


def sizes_in(program: ExportedProgram) -> dict[str, tuple[int, int | None, int]]:
    """(least, most, the traced one) of each size that varies; most is None without end."""
    found: dict[str, tuple[int, int | None, int]] = {}
    spans = {str(symbol): span for symbol, span in program.range_constraints.items()}
    for node in _nodes(program):
        for size in node.meta["val"].shape:
            if isinstance(size, int) or str(size) in found:
                continue
            span = spans[str(size)]
            least = int(span.lower) if span.lower > 2 else 1  # see `program`: torch asks from 3 on
            most = int(span.upper) if span.upper.is_finite and span.upper < 1 << 40 else None
            hint = size.node.hint
            found[str(size)] = (least, most, int(hint) if hint is not None else least)
    return found
