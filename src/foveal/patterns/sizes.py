"""Checks of the sizes that patterns are made of."""

from __future__ import annotations

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
