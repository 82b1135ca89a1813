"""What a mask function of transformers says, read by calling it once with symbols.

transformers describes every mask by a function of (batch, head, query, key), put together from
smaller ones, those of a model's own file among them. Called with the symbols of this file it says
what it compares: the distance of query and key with numbers, or what tables hold for the one with
what they hold for the other. What symbols cannot follow raises.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

MOST_TERMS = 4
CPU = torch.device("cpu")
Side = Literal["query", "key"]
QUERY: Side = "query"
KEY: Side = "key"
MIRRORED = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le", "eq": "eq", "ne": "ne"}


class UnreadableError(Exception):
    """A mask function does what symbols cannot follow."""


@dataclass(frozen=True)
class Relation:
    """A table's entry for the query compared (lt, le, gt, ge, eq, ne) with that for the key.

    queries is (batch or 1, num_queries), keys (batch or 1, num_keys).
    """

    name: str
    queries: Tensor
    keys: Tensor


@dataclass(frozen=True)
class Term:
    """Pairs for which all holds: low <= query - key <= high, the relations, and the masks."""

    low: float = -math.inf
    high: float = math.inf
    relations: tuple[Relation, ...] = ()
    of_keys: tuple[Tensor, ...] = ()
    of_queries: tuple[Tensor, ...] = ()

    @property
    def is_band(self) -> bool:
        """Whether it depends on the distance alone."""
        return not (self.relations or self.of_keys or self.of_queries)

    def both(self, other: Term) -> Term:
        """Pairs of the two."""
        return Term(
            max(self.low, other.low),
            min(self.high, other.high),
            self.relations + other.relations,
            self.of_keys + other.of_keys,
            self.of_queries + other.of_queries,
        )


class Symbol:
    """What all symbols answer. None has a truth value, or can be an index of a list."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Symbol:
        """What torch is asked: a tensor on the left of a symbol, or a table at it."""
        name = getattr(func, "__name__", "").strip("_")
        if name == "getitem" and isinstance(args[0], Tensor):
            return _entry(*args)
        if name == "rsub":
            name, args = "sub", args[::-1]
        if name not in _ASKED or kwargs or any(isinstance(one, tuple | list) for one in args):
            raise UnreadableError(f"{name} of a position")
        first, *rest = args
        if isinstance(first, Tensor):
            first = _pairs(first) if first.dtype == torch.bool else as_number(first)
        return _ASKED[name](first, *rest)

    def _refuse(self, *_: Any) -> Any:
        raise UnreadableError(f"the value of a {type(self).__name__.lower()}")

    __bool__ = __index__ = __int__ = __float__ = __len__ = __iter__ = _refuse

    def to(self, *_: Any, **__: Any) -> Any:
        return self


class Compared(Symbol):
    """A symbol that comparisons turn into pairs."""

    def _compared(self, name: str, other: Any) -> Pairs:
        raise NotImplementedError

    def __lt__(self, other: Any) -> Pairs:
        return self._compared("lt", other)

    def __le__(self, other: Any) -> Pairs:
        return self._compared("le", other)

    def __gt__(self, other: Any) -> Pairs:
        return self._compared("gt", other)

    def __ge__(self, other: Any) -> Pairs:
        return self._compared("ge", other)

    def __eq__(self, other: object) -> Any:
        return self._compared("eq", other)

    def __ne__(self, other: object) -> Any:
        return self._compared("ne", other)

    __hash__ = object.__hash__


_ASKED: dict[str, Callable[..., Any]] = {
    **{name: getattr(operator, name) for name in ("add", "sub", "mul", "floordiv", "mod", "neg")},
    **{name: getattr(operator, name) for name in MIRRORED},
    "abs": abs,
    "floor_divide": operator.floordiv,
    "remainder": operator.mod,
    **dict.fromkeys(("and", "bitwise_and", "logical_and"), operator.and_),
    **dict.fromkeys(("or", "bitwise_or", "logical_or"), operator.or_),
}


@dataclass(frozen=True, eq=False)
class Number(Compared):
    """A number for each place of one side, or (side None) for each row, the same for all places.

    Args:
        make: gives (batch or 1, places or 1) numbers.
        place: (shift, first, last) where the number is that of the place plus `shift`.
    """

    make: Callable[[], Tensor]
    side: Side | None = None
    place: tuple[int, int, int] | None = None
    device: torch.device = CPU

    @cached_property
    def table(self) -> Tensor:
        """The numbers."""
        return self.make()

    def new_ones(self, *_: Any, **__: Any) -> Pairs:
        return Pairs((Term(),), self.device)

    def new_zeros(self, *_: Any, **__: Any) -> Pairs:
        return Pairs((), self.device)

    def _moved(self, other: Any, sign: int, name: str) -> Any:
        other = as_number(other)
        if {self.side, other.side} == {QUERY, KEY}:
            if name == "add":
                raise UnreadableError("the sum of two positions")
            query, key = (self, other) if self.side == QUERY else (other, self)
            return Gap(query, key, sign=1 if self.side == QUERY else -1)
        found = self._with(other, getattr(operator, name))
        by = _whole(other)
        if self.place and by is not None:
            shift, first, last = self.place
            found = replace(found, place=(shift + sign * by, first, last))
        return found

    def _with(self, other: Number, combine: Callable[[Any, Any], Any]) -> Number:
        if {self.side, other.side} == {QUERY, KEY}:
            raise UnreadableError("arithmetic of two positions")
        if self.side is other.side is None and self.place and other.place:
            return as_number(int(combine(self.place[0], other.place[0])))
        side = self.side or other.side
        return Number(lambda: combine(self.table, other.table), side, device=self.device)

    def __add__(self, other: Any) -> Any:
        return self._moved(other, 1, "add")

    def __sub__(self, other: Any) -> Any:
        return self._moved(other, -1, "sub")

    def __rsub__(self, other: Any) -> Any:
        return as_number(other) - self

    def __mul__(self, other: Any) -> Number:
        return self._with(as_number(other), operator.mul)

    def __floordiv__(self, other: Any) -> Number:
        return self._with(as_number(other), operator.floordiv)

    def __mod__(self, other: Any) -> Number:
        return self._with(as_number(other), operator.mod)

    def __neg__(self) -> Number:
        return self * -1

    def __abs__(self) -> Number:
        return Number(lambda: self.table.abs(), self.side, device=self.device)

    __radd__, __rmul__ = __add__, __mul__

    def _compared(self, name: str, other: Any) -> Pairs:
        if isinstance(other, Gap):
            return other._compared(MIRRORED[name], self)
        other = as_number(other)
        if self.side == QUERY and other.side == KEY:
            return _related(name, self, other)
        if self.side == KEY and other.side == QUERY:
            return _related(MIRRORED[name], other, self)
        return _selected(name, self, other)


@dataclass(frozen=True, eq=False)
class Gap(Compared):
    """sign * (query - key), or its absolute value."""

    query: Number
    key: Number
    sign: int = 1
    absolute: bool = False

    def __add__(self, other: Any) -> Gap:
        if self.absolute:
            raise UnreadableError("a sum with an absolute distance")
        moved = self.query + as_number(other) * self.sign
        return replace(self, query=moved)

    def __sub__(self, other: Any) -> Gap:
        return self + as_number(other) * -1

    def __neg__(self) -> Gap:
        if self.absolute:
            raise UnreadableError("a negative absolute distance")
        return replace(self, sign=-self.sign)

    def __abs__(self) -> Gap:
        return replace(self, sign=1, absolute=True)

    def __rsub__(self, other: Any) -> Gap:
        return -self + other

    __radd__ = __add__

    def _compared(self, name: str, other: Any) -> Pairs:
        if isinstance(other, Gap):
            raise UnreadableError("two distances compared")
        limit = as_number(other)
        if not self.absolute:
            asked = name if self.sign == 1 else MIRRORED[name]
            return _related(asked, self.query - limit * self.sign, self.key)
        if name not in ("lt", "le"):
            raise UnreadableError("an absolute distance from a number on")
        below = _related(name, self.query - limit, self.key)
        return below & _related(MIRRORED[name], self.query + limit, self.key)


@dataclass(frozen=True, eq=False)
class Pairs(Symbol):
    """Pairs for which any of the terms holds: none of them without terms."""

    terms: tuple[Term, ...]
    device: torch.device = CPU

    def __and__(self, other: Any) -> Pairs:
        both = [a.both(b) for a in self.terms for b in _pairs(other).terms]
        return Pairs(_few(both), self.device)

    def __or__(self, other: Any) -> Pairs:
        return Pairs(_few([*self.terms, *_pairs(other).terms]), self.device)

    __rand__, __ror__ = __and__, __or__


def _few(terms: list[Term]) -> tuple[Term, ...]:
    """The same terms, neighbouring bands as one; empty ones go."""
    bands = sorted((t for t in terms if t.is_band and t.low <= t.high), key=lambda t: t.low)
    found: list[Term] = []
    for one in bands:
        if found and one.low <= found[-1].high + 1:
            found[-1] = Term(found[-1].low, max(found[-1].high, one.high))
        else:
            found.append(one)
    if Term() in found:  # all pairs
        return (Term(),)
    found += [t for t in terms if not t.is_band and t.low <= t.high]
    if len(found) > MOST_TERMS:
        raise UnreadableError("too many cases")
    return tuple(found)


def as_number(value: Any) -> Number:
    """A number of Python or of torch as a symbol."""
    if isinstance(value, Number):
        return value
    if isinstance(value, Tensor) and value.ndim == 0 and not value.is_floating_point():
        return Number(lambda: value.reshape(1, 1), device=value.device)
    if isinstance(value, int):
        return Number(lambda: torch.tensor([[value]]), place=(value, 0, 0))
    raise UnreadableError(f"a {type(value).__name__} beside a position")


def _whole(number: Number) -> int | None:
    """The number, where it is one and the same."""
    if number.side is None and number.place:
        return number.place[0]
    if number.side is None and number.table.numel() == 1:
        return int(number.table)
    return None


def _pairs(value: Any) -> Pairs:
    if isinstance(value, Pairs):
        return value
    if isinstance(value, bool) or (isinstance(value, Tensor) and value.ndim == 0):
        return Pairs((Term(),) if value else ())
    if isinstance(value, Number) and value.table.dtype == torch.bool:
        at = {"of_queries" if value.side == QUERY else "of_keys": (value.table,)}
        return Pairs((Term(**at),), value.device)  # type: ignore[arg-type]
    raise UnreadableError(f"a {type(value).__name__} where pairs are told apart")


def _entry(table: Tensor, index: Any) -> Number:
    """What a table holds for the places of one side."""
    parts = [as_number(one) for one in (index if isinstance(index, tuple) else (index,))]
    sides = {one.side for one in parts if one.side}
    if len(sides) > 1 or len(parts) != table.ndim:
        raise UnreadableError("a table of pairs")
    side = next(iter(sides), None)
    return Entry(lambda: table[tuple(one.table for one in parts)], side, device=table.device)


class Entry(Number):
    """A number read from a table; one of bools tells pairs apart by itself."""

    def __and__(self, other: Any) -> Pairs:
        return _pairs(self) & other

    def __or__(self, other: Any) -> Pairs:
        return _pairs(self) | other

    __rand__, __ror__ = __and__, __or__


def _selected(name: str, left: Number, right: Number) -> Pairs:
    """Pairs told apart by the one side alone."""
    side, limit = left.side or right.side, _whole(right)
    compare = getattr(operator, name)
    if left.place and limit is not None:
        shift, first, last = left.place
        ends = {bool(compare(shift + end, limit)) for end in (first, last)}
        if len(ends) == 1 and name not in ("eq", "ne"):
            return Pairs((Term(),) if ends.pop() else (), left.device)
    found = Number(lambda: compare(left.table, right.table), side, device=left.device)
    return _pairs(found)


def _related(name: str, query: Number, key: Number) -> Pairs:
    """query compared with key: a band where both are places, else a relation."""
    if not (query.place and key.place):
        return Pairs((Term(relations=(Relation(name, query.table, key.table),)),), key.device)
    # query + shift < key + other  <=>  query - key < other - shift
    edge = key.place[0] - query.place[0]
    ends = {
        "lt": (-math.inf, edge - 1),
        "le": (-math.inf, edge),
        "gt": (edge + 1, math.inf),
        "ge": (edge, math.inf),
        "eq": (edge, edge),
    }
    if name not in ends:
        raise UnreadableError("a distance left out")
    return Pairs((Term(*ends[name]),), key.device)


def read(
    mask_function: Callable[..., Any],
    batch: int,
    queries: tuple[int, int],
    keys: tuple[int, int],
    device: torch.device,
) -> tuple[Term, ...]:
    """The pairs that a mask function allows: those of any of the terms.

    Args:
        queries, keys: (first, count) of their places.

    Raises:
        UnreadableError, or whatever the function raises at symbols.
    """

    def places(side: Side, first: int, count: int) -> Number:
        def make() -> Tensor:
            return torch.arange(first, first + count, device=device)[None]

        return Number(make, side, (0, first, first + count - 1), device)

    rows = Number(lambda: torch.arange(batch, device=device)[:, None], device=device)
    head = as_number(0)  # masks are those of all heads
    found = mask_function(rows, head, places(QUERY, *queries), places(KEY, *keys))
    return _pairs(found).terms
