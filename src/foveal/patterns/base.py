"""What a pattern is, with a default for everything but its definition.

A pattern says which query positions attend to which key positions. It is geometry only: a frozen
dataclass without weights or data, cheap to build, hashable, and comparable.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from foveal.common.checks import as_bool
from foveal.common.memo import remember
from foveal.patterns import registry
from foveal.patterns.blockmask import analytic_block_mask
from foveal.patterns.cut import cut
from foveal.patterns.identity import is_fixed, key_of
from foveal.patterns.needs import Stretches, keys_needed
from foveal.patterns.notebook import picture
from foveal.patterns.offsets import Placed
from foveal.patterns.sizes import Sized, check_int
from foveal.patterns.stretch import keys_between, keys_in_reach
from foveal.patterns.subclasses import drop_stale_forms
from foveal.patterns.tiling import Tiling, consecutive, listed_groups

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

HeadMask = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(head, q_idx, k_idx), which broadcast -> may that head's query read the key?"""


@dataclass(frozen=True, eq=False)
class Pattern(Placed, Sized):
    """Base of all patterns: subclass it as a frozen dataclass and define `allows`.

    Everything else has a default derived from `allows`; override `_tiles`, `overlap`, `reads`,
    `horizon` and `num_pairs` where the geometry gives them in closed form.

    Attributes:
        causal: no query reads a key at a later position.
        heads: number of heads the pattern distinguishes, or None when all heads are alike.
    """

    @property
    def is_causal(self) -> bool:
        """Whether no query ever reads a later key."""
        return bool(getattr(self, "causal", False))

    @property
    def heads(self) -> int | None:
        """Number of heads with patterns of their own; None when one pattern serves all."""
        return None

    def per_head(self) -> tuple[Pattern, ...]:
        """One pattern for each head; this one alone where `heads` is None."""
        if self.heads is None:
            return (self,)
        # by name, for that class is made of this one
        one = registry.lookup("foveal.patterns.heads:_OneHead")
        return tuple(one(self, number) for number in range(self.heads))

    def in_head(self, device: torch.device | str | None = None) -> HeadMask:
        """`allows` for the head that is asked for: elementwise, no dimension of heads appears."""
        if self.heads is None:
            allows = self.rule(device)
            return lambda head, q_idx, k_idx: allows(q_idx, k_idx)
        rules = [one.rule(device) for one in self.per_head()]

        def allowed(head: Tensor, q_idx: Tensor, k_idx: Tensor) -> Tensor:
            found = rules[0](q_idx, k_idx) & (head == 0)
            for number, rule in enumerate(rules[1:], start=1):
                found = found | (rule(q_idx, k_idx) & (head == number))
            return found

        return allowed

    # class attributes without annotations, so that they are no fields
    opaque = False
    """Whether fields hold more than ints, strings, bools, tuples and patterns."""

    reference = ""
    """What stands for the class in a text: see `foveal.patterns.registry`."""

    _abstract = True
    _rule_of = None  # the class whose definition this is: see foveal.patterns.subclasses

    def __init_subclass__(cls, abstract: bool = False, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.reference = registry.register(cls)
        cls._abstract = abstract or cls.allows is Pattern.allows
        if "__eq__" not in vars(cls) and "__hash__" not in vars(cls):
            # else dataclass() would write its own, for which True is 1 and a tensor has no hash
            cls.__eq__ = Pattern.__eq__  # type: ignore[method-assign]
            cls.__hash__ = Pattern.__hash__  # type: ignore[method-assign]
        cls._rule_of = drop_stale_forms(cls, Pattern)

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Pattern:
        """A pattern from the values of its dataclass fields, those that it derives included."""
        given = {one.name: fields[one.name] for one in dataclasses.fields(cls) if one.init}
        try:
            new = cls(**given)
        except (TypeError, ValueError):  # an __init__ of its own
            new = object.__new__(cls)
        for name, value in fields.items():
            object.__setattr__(new, name, value)
        return new

    # -- identity ---------------------------------------------------------------------------

    def _contents(self) -> dict[str, Any]:
        """What makes the pattern: its fields, and whatever else an __init__ has set."""
        found = {name: getattr(self, name) for name in field_names(type(self))}
        for name, value in sorted(vars(self).items()):
            cached = isinstance(getattr(type(self), name, None), functools.cached_property)
            if name not in found and name != "_key" and not cached:
                found[name] = value
        return found

    def cache_key(self) -> Hashable:
        """Equal for patterns of one class with the same contents, and for no others."""
        found = vars(self).get("_key")
        if found is None:
            contents = self._contents()
            values = [(name, key_of(value)) for name, value in contents.items()]
            found = (type(self), *values)
            frozen = "__dataclass_params__" in vars(type(self))  # else attributes may be set
            if frozen and all(is_fixed(value) for value in contents.values()):
                object.__setattr__(self, "_key", found)
        return found

    def has_fixed_key(self) -> bool:
        """Whether nothing that the pattern holds can be changed in place."""
        self.cache_key()
        return "_key" in vars(self)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        if torch.compiler.is_dynamo_compiling():
            names = field_names(type(self))
            return all(getattr(self, name) == getattr(other, name) for name in names)
        return self.cache_key() == other.cache_key()

    def __hash__(self) -> int:
        return hash(self.cache_key())

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_key"}

    # -- checks of fields, for __post_init__ ------------------------------------------------

    def _check_ints(self, least: int, *names: str) -> None:
        """Ints of at least `least`; NumPy's become Python's."""
        for name in names:
            value = getattr(self, name)
            checked = check_int(name, value, least)
            if checked is not value:
                object.__setattr__(self, name, checked)

    def _check_bools(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not True and value is not False:
                object.__setattr__(self, name, as_bool(name, value))

    always_reads = False
    """Whether every query reads at least one key at any length (class attribute)."""

    reads_all = False
    """Whether every query reads every key (class attribute)."""

    keeps_apart = False
    """Whether the row falls into documents that do not look at each other (class attribute)."""

    def documents(self) -> Any:
        """Where the documents stand, as foveal.patterns.packs takes them; if `keeps_apart`."""
        raise NotImplementedError(f"{type(self).__name__} has no documents.")

    def band(self) -> Band | None:
        """(back, ahead): a query reads keys from `back` before it to `ahead` after it, no others.

        A bound of None is none. Only where the period is 1; None where most of the keys within
        would be masked, so that tiles of consecutive keys are no good plan.
        """
        return None

    biased_by_table = False
    """Whether the only bias is a table of `bias_size` rows, which `bias_place` picks by another
    rule than an offset (class attribute)."""

    # -- pooled keys ------------------------------------------------------------------------

    pools = False
    """Whether queries read means of clusters of keys, as `level` says (class attribute)."""

    def level(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        """Level at which each pair meets (broadcast shape, int64): as one of 2^level keys.

        A query reads an aligned run of 2^level keys at this level altogether, or not at all.
        """
        return torch.zeros_like(q_idx + k_idx)

    def num_levels(self, length: int) -> int:
        """Levels that pairs of a sequence of `length` tokens meet at, level 0 included."""
        return 1

    def joined(self, n_queries: int, n_keys: int) -> Any:
        """Who reads whom where the keys of all levels stand side by side: a `Joined`."""
        # by name, for that class is made of this one
        return registry.lookup("foveal.patterns.joined:_ByLevel")(self, n_queries, n_keys)

    # -- definition -------------------------------------------------------------------------

    def allows(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        """Elementwise: may the query at `q_idx` read the key at `k_idx`?

        Args:
            q_idx, k_idx: integer positions of shapes that broadcast.

        Returns:
            bool tensor of the broadcast shape; with `heads`, a leading dimension of heads.
        """
        raise NotImplementedError(f"{type(self).__name__} must define allows(q_idx, k_idx).")

    def rule(self, device: torch.device | str | None = None) -> Callable[[Tensor, Tensor], Tensor]:
        """`allows` for positions on a device; where it looks things up, the tables lie there."""
        return self.allows

    # -- dense view -------------------------------------------------------------------------

    def mask(
        self,
        n_queries: int,
        n_keys: int | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """The dense oracle: (n_queries, n_keys) bool, True = attend; (heads, ...) with `heads`."""
        n_keys = n_queries if n_keys is None else n_keys
        self.check_lengths(n_queries, n_keys)
        q = torch.arange(n_queries, device=device)[:, None]
        k = torch.arange(n_keys, device=device)[None, :]
        shape = (n_queries, n_keys) if self.heads is None else (self.heads, n_queries, n_keys)
        return self.allows(q, k).expand(shape)

    # -- fast view --------------------------------------------------------------------------

    def tiles(self, length: int) -> Tiling:
        """The tile plan for a self-attention of `length` tokens; built once and cached."""
        return (_fresh_tiles if self.keeps_apart else _cached_tiles)(self, length)

    def _tiles(self, length: int) -> Tiling:
        return self._part(0, self.num_queries(length), length)

    def _part(self, first: int, count: int, length: int) -> Tiling:
        """The plan of `count` queries from `first` on, which it numbers from 0."""
        if count >= WORTH_CUTTING and type(self)._tiles is not Pattern._tiles:
            return cut(self.tiles(length), first, count)
        groups = listed_groups(
            self.allows,
            consecutive(first + count, first),
            lambda queries: self._candidates(queries, length),
        )
        return Tiling(count, length, tuple(groups)).shift(-first, 0, count, length)

    def _span(self, first: int, count: int, length: int) -> tuple[int, int]:
        """A stretch of keys [low, high) beyond which `count` queries from `first` on read none."""
        return keys_between(self, first, count, length)

    def needs(self, first: int, last: int, length: int) -> Stretches:
        """The keys that queries [first, last) of a sequence of `length` tokens read.

        Returns:
            runs [low, high) of key positions, ascending, with gaps between them. Every one of
            them is read by some query, but of a pattern that has nothing but `allows` the runs are
            all keys (if causal, all up to the last query).
        """
        return keys_needed(self, first, last, length)

    @property
    def period(self) -> int | None:
        """What both places of a pair may be shifted by, without changing whether it is allowed or
        its row in a table of biases; None where no shift is known."""
        return None

    def overlap(self, q_first: Tensor, q_last: Tensor, k_first: Tensor, k_last: Tensor) -> Overlap:
        """Interval form of `allows`: for stretches of queries and keys (inclusive, broadcast).

        Returns (any, all): `any` is False only where no pair is allowed, `all` is True only where
        every pair is. The default knows nothing: (True, False).
        """
        some = (q_first == q_first) & (k_first == k_first)
        return some, ~some

    def _candidates(self, queries: Tensor, length: int, block: int = 16, first: int = 0) -> Tensor:
        """Sorted keys of [first, length) that the queries may read, by blocks; a superset."""
        # `allows` has the last word, not `causal`, which a subclass may have forgotten
        return keys_in_reach(self, queries, first, length, block)

    def block_mask(
        self, length: int, block: int = 128, device: torch.device | str | None = None
    ) -> BlockMask:
        """FlexAttention's BlockMask from `overlap` on block borders; never looks at n^2 pairs."""
        self.check_length(length)
        return analytic_block_mask(self, length, block, device)

    # -- decoding ---------------------------------------------------------------------------

    def reads(self, position: int) -> Tensor:
        """Key positions that a token at `position` reads, ascending: (num_keys,) int64.

        Raises:
            ValueError: the pattern is not causal, so a new token cannot be decoded.
        """
        self._require_causal("reads", position)
        last = position + 1
        bounds = self.horizon()
        if bounds is None or last <= sum(bounds):
            keys = torch.arange(last, device="cpu")
        else:
            prefix, window = bounds
            recent = torch.arange(max(prefix, last - window), last, device="cpu")
            keys = torch.cat([torch.arange(prefix, device="cpu"), recent])
        allowed = self.allows(torch.tensor(position, device="cpu"), keys)
        return keys[allowed if self.heads is None else allowed.any(0)]

    def horizon(self) -> tuple[int, int] | None:
        """(prefix, window): a query reads keys below `prefix`, or among the `window` latest.

        None when a key may stay readable without bound. A cache needs no more than `prefix`
        plus `window` places.
        """
        return None

    def keeps(self, position: int) -> range | Tensor:
        """Positions that a cache must still hold after `position`, for the tokens to come."""
        self._require_causal("keeps", position + 1)
        bounds = self.horizon()
        if bounds is None:
            return range(position + 1)
        prefix, window = bounds
        recent = range(max(0, position + 2 - window), position + 1)
        if prefix == 0 or recent.start <= prefix:
            return range(0 if prefix else recent.start, position + 1)
        return torch.cat(
            [
                torch.arange(prefix, device="cpu"),
                torch.arange(recent.start, recent.stop, device="cpu"),
            ]
        )

    @property
    def decodes_from(self) -> int | None:
        """Position from which tokens may come one at a time: nothing reads a later one then."""
        return 0 if self.is_causal else None

    def _require_causal(self, what: str, position: int = 0) -> None:
        first = self.decodes_from
        if first is None or position < first:
            late = "" if first is None else f" or a position of at least {first}"
            raise ValueError(
                f"{what} needs a causal pattern{late}, got {self}; decoding a token at a time is "
                "only defined when no query reads a later key (causal=True)."
            )

    # -- counting ---------------------------------------------------------------------------

    def num_pairs(self, length: int) -> int:
        """Allowed (query, key) pairs at this length, summed over `heads` where they differ.

        Of a pattern that pools, pairs of a query (or its cluster) and a cluster of keys.
        """
        if self.pools:
            return self.joined(length, length).num_pairs(length)
        return sum(one.tiles(length).num_pairs for one in self.per_head())

    # -- in a notebook ----------------------------------------------------------------------

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows: the picture, or None where it is too large or cannot be drawn."""
        return picture(self)

    # -- algebra ----------------------------------------------------------------------------

    def __or__(self, other: Any) -> Pattern:
        return _combined("Union", self, other)

    def __and__(self, other: Any) -> Pattern:
        return _combined("Intersection", self, other)


def field_names(cls: type[Pattern]) -> tuple[str, ...]:
    """What a pattern is made of, in order."""
    return tuple([one.name for one in dataclasses.fields(cls)])


# what torch.compiler.assume_constant_result does, which would import the compiler (a second)
field_names._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _combined(name: str, one: Pattern, other: Any) -> Any:
    # by name, for those classes are made of this one
    cls = registry.lookup(f"foveal.patterns.combine:{name}")
    return cls(one, other) if isinstance(other, Pattern) else NotImplemented


WORTH_CUTTING = 1024
"""Queries from which on a part is cut from the whole plan, which is kept; fewer are listed."""

Overlap = tuple[Tensor, Tensor]
Band = tuple[int | None, int | None]


def _build_tiles(pattern: Pattern, length: int) -> Tiling:
    pattern.check_length(length)
    if pattern.heads is not None:
        raise ValueError(
            f"{type(pattern).__name__} has {pattern.heads} heads with patterns of their own; "
            "take the plan of one of pattern.per_head()."
        )
    return pattern._tiles(length)


_cached_tiles = remember(entries=256)(_build_tiles)
# documents differ in every batch: a plan serves the layers of one step, and is not met again
_fresh_tiles = remember(entries=16, mebibytes=16, size=attrgetter("num_bytes"))(_build_tiles)
