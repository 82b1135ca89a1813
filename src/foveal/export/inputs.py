"""What a model's forward takes, and which of its sizes may vary."""

from __future__ import annotations

import inspect
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from foveal.common.checks import as_bool, as_int
from foveal.models.base import Model


class Span(NamedTuple):
    """The values of a size, both included; without a largest one where that is None."""

    least: int
    most: int | None

    @property
    def is_fixed(self) -> bool:
        return self.least == self.most


VOCABULARIES = {
    "text": "num_text_tokens",
    "image": "num_image_tokens",
    "target": "target_tokens",
}
"""What says how many tokens there are, for an input of that name."""

Size = int | tuple[int, int | None] | None
"""A number; (least, most), where None means without end; None: what the model takes."""


class Input(NamedTuple):
    """One tensor of forward.

    name: the argument.
    sizes: the name and the values of each dimension; a name stands for one size everywhere.
    example: the shape to trace with.
    high: tokens are 0 <= token < high; None for what are no tokens.
    """

    name: str
    sizes: tuple[tuple[str, Span], ...]
    example: tuple[int, ...]
    dtype: torch.dtype
    high: int | None = None


def inputs_of(
    model: Any,
    *,
    batch: Size = None,
    length: Size = None,
    size: tuple[Size, Size] | int | None = None,
    mask: bool = False,
) -> tuple[Input, ...]:
    """The inputs of a model's forward that a program of it takes.

    Args:
        batch: examples: a number, or (least, most); any by default.
        length: tokens of each input, as batch; from 1 to the model's longest by default.
        size: (height, width) of pictures, each as batch; an int for a square. By default
            all above the model's own, which fill more than a window of every stage.
        mask: take a mask of the real tokens too.

    Raises:
        TypeError: it is no model of foveal.
        ValueError: a size that the model does not take, or an option that means nothing to it.
    """
    if not isinstance(model, Model):
        raise TypeError(f"model must be a model of foveal, got {type(model).__name__}.")
    examples = model.example_inputs()
    names = list(inspect.signature(model.forward).parameters)
    texts = [name for name, one in zip(names, examples, strict=False) if one.ndim == 2]
    batches = _span("batch", batch, Span(1, None))
    if length is not None and not texts:
        raise ValueError(f"{type(model).__name__} reads no tokens, got {length=}; leave it out.")
    found = []
    for name, one in zip(names, examples, strict=False):
        if one.ndim == 2:
            found.append(_tokens(model, name, one, batches, length, len(texts) == 1))
        else:
            found.append(_pictures(model, name, one, batches, size))
    if size is not None and len(texts) == len(found):
        raise ValueError(f"{type(model).__name__} sees no pictures, got {size=}; leave it out.")
    if as_bool("mask", mask):
        if not texts:
            raise ValueError(f"{type(model).__name__} reads no tokens, got mask=True; omit it.")
        found += [_mask(model, names, one, len(texts) == 1) for one in found if one.high]
    return tuple(found)


def _tokens(
    model: Model, name: str, example: Tensor, batches: Span, length: Size, alone: bool
) -> Input:
    words = VOCABULARIES.get(name, "num_tokens")
    most = example.shape[1] - (name == "image")  # the last token of a picture is not read
    lengths = _span("length", length, Span(_fewest(model), most))
    if lengths.most is None or lengths.most > most:
        if length is not None and (alone or lengths.is_fixed or lengths.least > most):
            raise ValueError(
                f"length must be at most {most}, which is the longest {name} of "
                f"{type(model).__name__}, got {length=}."
            )
        lengths = Span(lengths.least, most)
    if length is None and alone:
        lengths = _fitting(model, lengths.least, most)
    settings: Any = model.settings
    sizes = ("batch", batches), ("length" if alone else f"{name}_length", lengths)
    shape = _traced(batches, 3), _traced(lengths, most)
    return Input(name, sizes, shape, example.dtype, getattr(settings, words))


def _fitting(model: Model, least: int, most: int) -> Span:
    """The lengths that all patterns of the model take, of which some have lengths of their own."""
    patterns = getattr(model.settings, "patterns", ())

    def fits(length: int) -> bool:
        try:
            for pattern in patterns:
                pattern.check_length(length)
        except ValueError:
            return False
        return True

    own = [one for pattern in patterns if (one := pattern.natural_length) and least <= one <= most]
    whole = next((one for one in (most, *sorted(own, reverse=True)) if fits(one)), None)
    if whole is None:  # none: the model says why
        return Span(least, most)
    low, high = least, whole
    while low < high:  # what fits is one range
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle + 1, high)
    return Span(low, whole)


def _fewest(model: Model) -> int:
    """Tokens of which every level of a hierarchy has two: of one, a trace with symbols does not
    know how it lies in memory."""
    factors = getattr(model.settings, "factors", ())
    return math.prod(factors) + 1 if factors else 1


def _pictures(
    model: Model, name: str, example: Tensor, batches: Span, size: tuple[Size, Size] | int | None
) -> Input:
    _, channels, height, width = example.shape
    given = size if isinstance(size, tuple) else (size, size)
    own = getattr(model.settings, "pixels", None)  # of models that know one size
    sides = []
    for axis, side, one in zip(("height", "width"), (height, width), given, strict=True):
        span = _span(axis, one, Span(side, side) if own else Span(side + 1, None))
        if own and span != (side, side):
            raise ValueError(
                f"size must be {height} x {width} of {type(model).__name__}, got {size=}."
            )
        sides.append((axis, span))
    sizes = ("batch", batches), ("channels", Span(channels, channels)), *sides
    # sides differ: equal ones might be taken for one size
    shape = (
        _traced(batches, 3),
        channels,
        _traced(sides[0][1], height + height // 8),
        _traced(sides[1][1], width + width // 6),
    )
    return Input(name, sizes, shape, example.dtype)


def _mask(model: Model, names: list[str], of: Input, alone: bool) -> Input:
    known = [one for one in (f"{of.name}_mask", "mask" if alone else "") if one in names]
    if not known:
        raise ValueError(f"{type(model).__name__} takes no mask of {of.name}; omit mask=True.")
    return Input(known[0], of.sizes, of.example, torch.bool)


def _span(name: str, given: Size, default: Span) -> Span:
    if given is None:
        return default
    if isinstance(given, tuple | list):
        if len(given) != 2:
            raise ValueError(f"{name} must be a number or (least, most), got {name}={given!r}.")
        least = as_int(f"{name}[0]", given[0], 1)
        most = given[1] if given[1] is None else as_int(f"{name}[1]", given[1], least)
        return Span(least, most)
    number = as_int(name, given, 1)
    return Span(number, number)


def _traced(span: Span, wanted: int) -> int:
    """A size to trace with: near to what is wanted, and no border of what is possible."""
    if span.most is None:
        return max(wanted, span.least + 1)
    return max(span.least, min(wanted, span.most) - (0 if span.is_fixed or span.most < 4 else 1))


def example_tensors(
    inputs: tuple[Input, ...], device: torch.device
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Zeros of the shapes to trace with: those by position, and masks by name."""
    made = [(one, torch.zeros(one.example, dtype=one.dtype, device=device)) for one in inputs]
    args = tuple(x for one, x in made if one.dtype != torch.bool)
    return args, {one.name: x.fill_(True) for one, x in made if one.dtype == torch.bool}
