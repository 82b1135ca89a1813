"""A model as a program of plain operators."""

from __future__ import annotations

import contextlib
import copy
import operator
from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from foveal.export.inputs import Input, Size, Span, example_tensors, inputs_of
from foveal.models.base import evaluating
from foveal.ops.lowered import NotLoweredError, lowering


def program(
    model: Any,
    *,
    batch: Size = None,
    length: Size = None,
    size: tuple[Size, Size] | int | None = None,
    mask: bool = False,
) -> ExportedProgram:
    """The forward pass of a model, in evaluation mode, as plain operators with the weights.

    It loads and runs where torch is, without foveal, on the CPU. A window costs what its pairs
    cost. No kernel of this machine is in it. What it gives has no gradient.

    Args:
        model: of foveal; stays as it is, and the program shares its weights until it is saved,
            unless they are on another device than the CPU, for which programs are made.
        batch: examples: a number, or (least, most), most None for any; any by default.
        length: tokens of each input, as batch; from 1 to the model's longest by default.
        size: (height, width) of pictures, each as batch; an int for a square of one size. Any that
            the model can do by default.
        mask: take a mask of the real tokens too, as the model's `mask`.

    Returns:
        A torch.export.ExportedProgram; `program.module()` runs it.

    Raises:
        TypeError: it is no model of foveal.
        ValueError: sizes that do not fit, or a model that has no such program, by name.

    Example:
        >>> import torch
        >>> from foveal import export, patterns as P
        >>> from foveal.models import TransformerLM
        >>> model = TransformerLM(dim=16, depth=1, heads=1, pattern=P.SlidingWindow(8))
        >>> export.program(model).module()(torch.zeros(2, 70, dtype=torch.long)).shape
        torch.Size([2, 70, 256])
    """
    inputs = inputs_of(model, batch=batch, length=length, size=size, mask=mask)
    if model.sharing is not None:
        raise ValueError("a model that shares its sequence with other ranks has no program.")
    model = _on_cpu(model)
    found = _exported(model, inputs)
    _check_operators(model, found)
    weights = found._state_dict  # detached, so that running it keeps nothing for a backward pass
    for name, value in weights.items():
        if isinstance(value, nn.Parameter) and value.requires_grad:
            weights[name] = nn.Parameter(value.detach(), requires_grad=False)
    return found


def _on_cpu(model: nn.Module) -> nn.Module:
    """The model, or where its weights are elsewhere a copy: plans are tables on the CPU.

    Raises:
        ValueError: it has no weights.
    """
    kinds = {x.device.type for x in chain(model.parameters(), model.buffers())}
    if "meta" in kinds:
        raise ValueError("a model on meta has no weights to export; load it on another device.")
    if kinds <= {"cpu"}:
        return model
    return _copied(model)


def _copied(model: nn.Module) -> nn.Module:
    """A copy on the CPU; where the weights are, there is no second one even for a moment."""
    moved: dict[int, Any] = {}
    for x in chain(model.parameters(), model.buffers()):
        here = x.detach().to("cpu", copy=True)
        moved[id(x)] = nn.Parameter(here, x.requires_grad) if isinstance(x, nn.Parameter) else here
    return copy.deepcopy(model, moved)


def _exported(model: Any, inputs: tuple[Input, ...]) -> ExportedProgram:
    import torch._dynamo.config as tracer

    args, kwargs = example_tensors(inputs, model.device)
    kind = type(model).__name__
    try:
        # to keep what an operator gave, lest it be inferred again, takes torch longer than to
        # infer it of symbols
        with (
            evaluating(model),
            lowering(),
            _floors(),
            torch.no_grad(),
            tracer.patch(fake_tensor_cache_enabled=False),
        ):
            found = torch.export.export(
                model, args, kwargs, dynamic_shapes=_dynamic(inputs), strict=False
            )
    except NotLoweredError as error:
        raise ValueError(f"{kind} has no program of plain operators: {error}.") from error
    except torch._dynamo.exc.UserError as error:
        raise ValueError(f"{kind} cannot be traced for such sizes: {_told(error)}") from error
    _bound(found, inputs)
    return found


@contextlib.contextmanager
def _floors() -> Iterator[None]:
    """Sizes of pooled maps by plain division, whose remainder torch 2.11 asks for: a program would
    serve only sides that are odd or even as the traced ones are."""
    import torch._meta_registrations as rules

    own = getattr(rules, "div_rtn", None)
    if own is None:
        yield
        return
    rules.div_rtn = operator.floordiv
    try:
        yield
    finally:
        rules.div_rtn = own


SIDES = ("height", "width")


def _bound(found: ExportedProgram, inputs: tuple[Input, ...]) -> None:
    """Bounds of the sides of pictures: from small ones on, windows ask what nobody can prove."""
    from torch.utils._sympy.value_ranges import ValueRanges

    nodes = {node.name: node for node in found.graph.nodes if node.op == "placeholder"}
    for one in inputs:
        for at, (name, span) in enumerate(one.sizes):
            size = nodes[one.name].meta["val"].shape[at]
            if name in SIDES and not isinstance(size, int):
                own = found.range_constraints[size.node.expr]
                most = own.upper if span.most is None else span.most
                bounds = ValueRanges(max(own.lower, span.least), most)
                found.range_constraints[size.node.expr] = bounds


def _told(error: Exception) -> str:
    """What torch says of sizes, in one line."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
    of_sizes = [line for line in lines[1:] if line.startswith(("Not all values", "You marked"))]
    return (of_sizes or lines)[0][:300]


def _dynamic(inputs: tuple[Input, ...]) -> dict[str, dict[int, Any]]:
    dims: dict[str, Any] = {}
    found: dict[str, dict[int, Any]] = {}
    for one in inputs:
        own = found[one.name] = {}
        for at, (name, span) in enumerate(one.sizes):
            if not span.is_fixed:
                own[at] = dims.setdefault(name, _dim(name, span))
    return found


def _dim(name: str, span: Span) -> Any:
    if name in SIDES:  # see `_bound`
        return Dim.DYNAMIC
    # of sizes from 2 on torch can prove more; a program runs with 1 too, as `check` sees
    least = max(2, span.least)
    return Dim(name, min=1 if least == span.most else least, max=span.most)


def _check_operators(model: nn.Module, found: ExportedProgram) -> None:
    """Raise ValueError for what runs nowhere else, or never twice alike."""
    kind = type(model).__name__
    for graph in (one.graph for one in found.graph_module.modules() if hasattr(one, "graph")):
        for node in graph.nodes:
            target: Any = node.target
            if getattr(target, "namespace", "aten") not in ("aten", "higher_order", "prims"):
                raise ValueError(f"{kind} has no program of plain operators: it needs {target}.")
            if torch.Tag.nondeterministic_seeded in getattr(target, "tags", ()) and _draws(node):
                raise ValueError(f"{kind} has no program: it draws at random ({target}).")


def _draws(node: Any) -> bool:
    """Whether a node draws: attention and dropout do only where weights are dropped."""
    name = str(node.target)
    if "dropout" in name and node.args[-1] is False:
        return False
    if "attention" in name:
        return bool(node.kwargs.get("dropout_p", node.args[4] if len(node.args) > 4 else 0.0))
    return True
