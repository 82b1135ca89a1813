"""Arguments as people pass them: numbers of NumPy are welcome, text and bools are not counts."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch


def as_int(name: str, value: Any, least: int | None = None) -> int:
    """An int, from whatever Python can use as an index (NumPy's ints too).

    Symbolic sizes of a graph that is being traced pass as they are.

    Raises:
        ValueError: value is no whole number (a bool or a float is none), or less than `least`.
    """
    if isinstance(value, torch.SymInt):
        return value  # type: ignore[return-value]
    kind = {None: "an int", 0: "an int of at least 0", 1: "a positive int"}.get(
        least, f"an int of at least {least}"
    )
    try:
        found = None if _is_bool(value) else operator.index(value)
    except TypeError:
        found = None
    if found is None or (least is not None and found < least):
        raise ValueError(f"{name} must be {kind}, got {name}={value!r}.")
    return found


def as_bool(name: str, value: Any) -> bool:
    """A bool, from Python or NumPy.

    Raises:
        ValueError: value is anything else; text such as "false" would count as true.
    """
    if not _is_bool(value):
        raise ValueError(f"{name} must be True or False, got {name}={value!r}.")
    return bool(value)


def as_number(
    name: str, value: Any, least: float | None = None, below: float | None = None
) -> float:
    """A finite number, as it is (an int stays an int).

    Raises:
        ValueError: value is no number, not finite, less than `least`, or not below `below`.
    """
    is_number = isinstance(value, int | float) or hasattr(value, "__float__")
    fits = is_number and not _is_bool(value) and not isinstance(value, str)
    if fits:
        number = _as_float(value)
        fits = math.isfinite(number) and (least is None or number >= least)
        fits = fits and (below is None or number < below)
    if not fits:
        limits = [f"at least {least}"] if least is not None else []
        limits += [f"below {below}"] if below is not None else []
        rule = " and ".join(limits)
        raise ValueError(f"{name} must be a number{' ' + rule if rule else ''}, got {value!r}.")
    return value if isinstance(value, int | float) else float(value)


def _as_float(value: Any) -> float:
    """A number as a float, infinite where it is an int beyond all floats."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def check_sizes(**values: Any) -> None:
    """Raise ValueError for the first value that is not a positive int, naming it."""
    for name, value in values.items():
        as_int(name, value, 1)


def check_dense(name: str, x: Any) -> None:
    """Raise ValueError for a tensor of another kind: nested (without sizes), sparse, quantised."""
    if not isinstance(x, torch.Tensor):
        return
    if x.is_nested:
        raise ValueError(
            f"{name} must be a dense tensor, got a nested one; pad it by .to_padded_tensor() and "
            "pass a mask, or lay its sequences side by side for attend_varlen."
        )
    if x.layout != torch.strided:
        raise ValueError(f"{name} must be a dense tensor, got {x.layout}; use .to_dense() first.")
    if x.is_quantized:
        raise ValueError(f"{name} must not be quantised, got {x.dtype}; use .dequantize() first.")


def _is_bool(value: Any) -> bool:
    """Whether it is Python's bool or NumPy's, which this layer does not import."""
    return isinstance(value, bool) or type(value).__name__ in ("bool_", "bool")
