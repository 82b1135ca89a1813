"""Does a program compute what its model computes, at sizes that were not traced?"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils import _pytree

from foveal.common.checks import as_number
from foveal.export.inputs import inputs_of
from foveal.export.shapes import inputs_in, sizes_in
from foveal.models.base import evaluating

TOLERANCES = {torch.float16: 1e-2, torch.bfloat16: 5e-2, torch.float64: 1e-6}
TOLERANCE = 1e-4
LONGEST = 4096
"""Checks look at no longer sequences."""

Feed = tuple[tuple[Tensor, ...], dict[str, Tensor]]


def check(
    program: ExportedProgram,
    model: Any,
    *,
    tolerance: float | None = None,
    seed: int = 0,
    run: Callable[..., Any] | None = None,
) -> float:
    """Compare a program with its model, at the smallest sizes, in between and at large ones.

    Args:
        program: from `foveal.export.program`, or loaded.
        model: what it was made of.
        tolerance: of a number, relative to it where it is larger than 1; by the dtype by default,
            1e-4 in float32.
        seed: of the inputs that are drawn.
        run: the program in another form, such as an OnnxProgram, to be compared in its place.

    Returns:
        The largest deviation that was seen.

    Raises:
        TypeError: it is no program, or no model of foveal.
        ValueError: the program gives something else, or nothing, at sizes that the message names;
            a tolerance that is no number from 0 on.
    """
    check_type(program)
    check_tolerance(tolerance)
    highs = {one.name: one.high for one in inputs_of(model)}
    run, worst = program.module() if run is None else run, 0.0
    draw = torch.Generator("cpu").manual_seed(seed)
    for sizes in _sizes(program):
        args, kwargs = feed = _feed(program, sizes, highs, draw)
        with evaluating(model), torch.no_grad():
            wanted = _pytree.tree_leaves(_asked(model, feed))
            try:
                found = _pytree.tree_leaves(run(*args, **kwargs))
            except Exception as error:  # of torch, of any type
                reason = str(error).strip().partition("\n")[0]
                raise ValueError(f"the program fails at {_words(feed)}: {reason}") from error
        worst = max(worst, _compared(found, wanted, tolerance, feed))
    return worst


def check_type(program: Any) -> None:
    """Raise TypeError for what is no program."""
    if not isinstance(program, ExportedProgram):
        raise TypeError(f"program must be an ExportedProgram, got {type(program).__name__}.")


def check_tolerance(tolerance: Any) -> None:
    """Raise ValueError for what is neither None nor a number from 0 on."""
    if tolerance is not None:
        as_number("tolerance", tolerance, 0)


def _asked(model: Any, feed: Feed) -> Any:
    """What a model gives, wherever it is."""
    args, kwargs = _pytree.tree_map(lambda x: x.to(model.device), feed)
    return _pytree.tree_map(lambda x: x.cpu(), model(*args, **kwargs))


def _sizes(program: ExportedProgram) -> Iterator[dict[str, int]]:
    """Values of the sizes that vary: the smallest, some between, and the largest."""
    spans, draw = sizes_in(program), random.Random(0)
    low: dict[str, int] = {}
    between: dict[str, int] = {}
    high: dict[str, int] = {}
    for name, (least, most, traced) in spans.items():
        top = min(most or max(8, 2 * traced - least), LONGEST)
        low[name], high[name] = least, max(least, top)
        between[name] = draw.randint(least, high[name])
    for name, (least, most, traced) in spans.items():  # a large batch shows nothing more
        if most is None and least == 1 and traced < 8:
            high[name] = 1
    seen: list[dict[str, int]] = []
    for one in (low, between, high):
        if one not in seen:
            seen.append(one)
            yield one


def _feed(
    program: ExportedProgram,
    sizes: dict[str, int],
    highs: dict[str, Any],
    draw: torch.Generator,
) -> Feed:
    args, kwargs = [], {}
    for name, dtype, shape, by_name in inputs_in(program):
        real = [one if isinstance(one, int) else one.at(sizes) for one in shape]
        if dtype == torch.bool:
            x = torch.rand(real, generator=draw, device="cpu") < 0.8
            x[:, 0] = True
        elif dtype.is_floating_point:
            x = torch.rand(real, generator=draw, device="cpu").to(dtype)
        else:
            x = torch.randint(
                highs.get(name) or 2, real, generator=draw, dtype=dtype, device="cpu"
            )
        if by_name:
            kwargs[name] = x
        else:
            args.append(x)
    return tuple(args), kwargs


def _compared(found: list[Any], wanted: list[Any], tolerance: float | None, feed: Feed) -> float:
    """The largest deviation.

    Raises:
        ValueError: it is too large.
    """
    worst = 0.0
    if len(found) != len(wanted):
        raise ValueError(f"the program gives {len(found)} results, and the model {len(wanted)}.")
    for one, other in zip(found, wanted, strict=True):
        if one.shape != other.shape or one.dtype != other.dtype:
            raise ValueError(
                f"the program gives {tuple(one.shape)} of {one.dtype} at {_words(feed)}, and the "
                f"model {tuple(other.shape)} of {other.dtype}."
            )
        limit = TOLERANCES.get(other.dtype, TOLERANCE) if tolerance is None else tolerance
        far = gaps(one, other) / other.double().cpu().abs().nan_to_num(nan=1.0).clamp(min=1.0)
        far = far.nan_to_num(nan=torch.inf, posinf=torch.inf)  # from what is infinite
        largest = float(far.max()) if far.numel() else 0.0
        if largest > limit:
            raise ValueError(
                f"the program differs from the model by {largest:.2g} at {_words(feed)}, where "
                f"{limit:.0e} is allowed."
            )
        worst = max(worst, largest)
    return worst


def gaps(found: Tensor, wanted: Tensor) -> Tensor:
    """How far numbers are from those of another tensor, both of any shape: float64, on the CPU.

    What is the same counts as such, be it infinite or NaN; NaN beside a number is far from it.
    """
    found, wanted = found.double().cpu(), wanted.double().cpu()
    same = (found == wanted) | (found.isnan() & wanted.isnan())
    return (found - wanted).abs().masked_fill(same, 0.0).nan_to_num(torch.inf, torch.inf)


def _words(feed: Feed) -> str:
    args, kwargs = feed
    return ", ".join(str(tuple(x.shape)) for x in (*args, *kwargs.values()))
