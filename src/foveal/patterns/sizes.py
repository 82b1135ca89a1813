"""Checks of the sizes that patterns are made of."""

from __future__ import annotations

import itertools
from array import array
from typing import Any

import torch

from foveal.common.checks import as_bool, as_int, check_dense

INTS = (int, torch.SymInt)  # sizes are symbols while a model is exported

MOST = 2**31 - 1
"""Largest size in a pattern: products of two of them are still positions."""

FORMS = ("(length,)", "(height, width)", "(frames, height, width)")
"""What the numbers of a size are called, for one to three axes."""


class Sized:
    """How long the rows of a pattern may be: of every pattern, whose base this is."""

    @property
    def natural_length(self) -> int | None:
        """Tokens of the row that it is made for: an image, a layout, a pack; None for any row."""
        return None

    def check_length(self, length: int) -> None:
        """Raise ValueError if a sequence of this length makes no sense for the pattern."""
        if length < 0:
            raise ValueError(f"length must not be negative, got {length=}.")

    def takes_length(self, length: int) -> bool:
        """Whether there may be so many tokens: of some patterns all are there or none."""
        try:
            self.check_length(length)
        except ValueError:
            return False
        return True

    def num_queries(self, n_keys: int) -> int:
        """Queries that go with this many keys: as many, unless the pattern strides them."""
        return n_keys

    def counts_tokens(self, n_keys: int) -> bool:
        """Whether each query is one of the tokens, so that it has a distance to them."""
        return self.num_queries(n_keys) == n_keys

    def check_lengths(self, n_queries: int, n_keys: int) -> None:
        """Raise ValueError if so many queries make no sense for so many keys.

        A query may stand behind all keys, but not where the pattern says which queries there are.
        """
        self.check_length(max(n_queries, n_keys))
        if (own := self.num_queries(n_keys)) != n_keys:
            refuse_more(n_queries, own, n_keys, self)


def refuse_more(n_queries: int, most: int, n_keys: int, what: object) -> None:
    """Raise ValueError if there are more queries than `what` has for its keys."""
    if n_queries > most:
        raise ValueError(
            f"{what} has {most} queries for {n_keys} keys, got {n_queries}; give q no more."
        )


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
    height, width = each(value, name, 2, least)
    return height, width


def each(value: Any, name: str, count: int, least: int = 1) -> tuple[int, ...]:
    """An int, or one for each of `count` axes, as a tuple; checked to be at least `least` each."""
    many = isinstance(value, tuple | list)
    try:
        found = tuple([check_int(name, one, least) for one in value]) if many else None
        found = found or (check_int(name, value, least),) * count
    except ValueError:
        found = ()
    if len(found) != count:
        raise ValueError(
            f"{name} must be an int or {FORMS[count - 1]} of at least {least}, got "
            f"{name}={value!r}."
        )
    return found


def sides(value: Any, name: str = "size") -> tuple[int, ...]:
    """The lengths of one to three axes; an int is the side of a square."""
    count = len(value) if isinstance(value, tuple | list) else 2
    if not 1 <= count <= len(FORMS):
        raise ValueError(
            f"{name} must be an int (of a square), {', '.join(FORMS[:2])} or {FORMS[2]}, "
            f"got {name}={value!r}."
        )
    return each(value, name, count)


def each_bool(value: Any, name: str, count: int) -> bool | tuple[bool, ...]:
    """A bool as it is, or one for each of `count` axes as a tuple; False where none is True.

    Raises:
        ValueError: anything else.
    """
    if not isinstance(value, tuple | list):
        return as_bool(name, value)
    if len(value) != count:
        raise ValueError(
            f"{name} must be True, False or a bool for each of {FORMS[count - 1]}, got "
            f"{name}={value!r}."
        )
    found = tuple([as_bool(name, one) for one in value])
    return found if True in found else False


def as_lengths(name: str, values: Any) -> tuple[int, ...]:
    """Ints of at least 0 from a tuple, list, array or tensor of one dimension."""
    check_dense(name, values)
    if isinstance(values, torch.Tensor) and values.is_meta:
        raise ValueError(f"{name} must hold values, got a tensor on the meta device.")
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
