"""Checks of the sizes that patterns are made of."""

from __future__ import annotations

import itertools
from array import array
from typing import Any

import torch

from foveal.common.checks import as_int

INTS = (int, torch.SymInt)  # sizes are symbols while a model is exported

MOST = 2**31 - 1
"""Largest size in a pattern: products of two of them are still positions."""


def check_int(name: str, value: Any, least: int) -> int:
    """An int from `least` to MOST, as Python's int or as the symbol that it is."""
    if not isinstance(value, INTS) or isinstance(value, bool) or value < least:
        value = as_int(name, value, least)
    if not torch.compiler.is_compiling() and isinstance(value, int) and value > MOST:
        raise ValueError(f"{name} must be at most {MOST}, got {name}={value:.2e}.")
    return value


def check_positive(**values: Any) -> None:
    """Raise ValueError for the first value that is not a positive int, naming it."""
    for name, value in values.items():
        check_int(name, value, 1)


def pair(value: Any, name: str, least: int = 1) -> tuple[int, int]:
    """An int or (height, width) as (height, width), checked to be at least `least` each."""
    many = isinstance(value, tuple | list)
    both = tuple(value) if many else (value, value)
    try:
        height, width = (check_int(name, one, least) for one in both)
    except ValueError:
        raise ValueError(
            f"{name} must be an int or a (height, width) pair of at least {least}, "
            f"got {name}={value!r}."
        ) from None
    return height, width


def as_lengths(name: str, values: Any) -> tuple[int, ...]:
    """Ints of at least 0 from a tuple, list, array or tensor of one dimension."""
    if isinstance(values, torch.Tensor) or hasattr(values, "__array_interface__"):
        values = values.tolist()
    if not isinstance(values, tuple | list):
        raise ValueError(f"{name} must be a list of ints, got {name}={values!r}.")
    if {type(one) for one in values} <= {int} and all(0 <= one <= MOST for one in values):
        return tuple(values)
    return tuple(check_int(f"{name}[{i}]", one, 0) for i, one in enumerate(values))


def lengths_key(lengths: tuple[int, ...]) -> Any:
    """What stands for lengths in the key of a cache, where packs stay for a while."""
    return array("q", lengths).tobytes() if all(type(one) is int for one in lengths) else lengths


def lengths_between(name: str, borders: Any) -> tuple[int, ...]:
    """Lengths from ascending borders that begin with 0, as packages of variable length take them.

    Raises:
        ValueError: borders are of another form.
    """
    ends = as_lengths(name, borders)
    if not ends or ends[0] != 0:
        raise ValueError(
            f"{name} must begin with 0 and hold the end of each document, got {name}={ends!r:.60}."
        )
    lengths = tuple([after - before for before, after in itertools.pairwise(ends)])
    if any(one < 0 for one in lengths):
        at = next(i for i, one in enumerate(lengths) if one < 0)
        raise ValueError(
            f"{name} must not fall, got {ends[at + 1]} after {ends[at]} ({name}[{at + 1}])."
        )
    return lengths
