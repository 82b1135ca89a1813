"""Some of the queries of a pattern over runs of its keys, which stand side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from foveal.common.memo import remember
from foveal.patterns.base import Pattern
from foveal.patterns.grids import Lookup, Places, Runs, edges
from foveal.patterns.needs import Stretches, listed, plan_of_part
from foveal.patterns.offsets import Codes
from foveal.patterns.sizes import refuse_more
from foveal.patterns.tiling import TileGroup, Tiling


@dataclass(frozen=True)
class Gathered(Pattern, abstract=True):
    """Queries `first` to `first + count` of a pattern over some of its keys.

    The plan is that of the pattern for these queries, with every key where it stands now. A key
    that a query reads must be among those that are there.

    runs: which keys, ascending runs [low, high) of the pattern's.
    length: keys of the whole pattern.
    """

    pattern: Pattern
    first: int
    count: int
    runs: Stretches
    length: int

    # -- definition -------------------------------------------------------------------------

    def allows(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        return self.pattern.allows(q_idx + self.first, self._places(k_idx.device)[k_idx])

    def rule(self, device: torch.device | str | None = None) -> Callable[[Tensor, Tensor], Tensor]:
        rule, first, places = self.pattern.rule(device), self.first, self._places(device)
        return lambda q_idx, k_idx: rule(q_idx + first, places[k_idx])

    def _places(self, device: torch.device | str | None) -> Tensor:
        return _listed(self.runs, str(device or "cpu"))

    @property
    def heads(self) -> int | None:
        return self.pattern.heads

    def per_head(self) -> tuple[Pattern, ...]:
        if self.heads is None:
            return (self,)
        rest = self.first, self.count, self.runs, self.length
        return tuple([Gathered(one, *rest) for one in self.pattern.per_head()])

    def num_queries(self, n_keys: int) -> int:
        return self.count

    @property
    def natural_length(self) -> int:
        return sum(high - low for low, high in self.runs)

    def check_lengths(self, n_queries: int, n_keys: int) -> None:
        super().check_lengths(n_queries, n_keys)
        refuse_more(n_queries, self.count, n_keys, self)

    # -- tables of biases -------------------------------------------------------------------

    @property
    def biased_by_table(self) -> bool:  # type: ignore[override]
        return self.pattern.biased_by_table

    @property
    def bias_size(self) -> int | None:
        return self.pattern.bias_size

    def bias_place(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        return self.pattern.bias_place(q_idx + self.first, self._places(k_idx.device)[k_idx])

    def tokens(self, q_idx: Tensor, k_idx: Tensor) -> tuple[Tensor, Tensor]:
        return self.pattern.tokens(q_idx + self.first, self._places(k_idx.device)[k_idx])

    def counts_tokens(self, n_keys: int) -> bool:
        return self.pattern.counts_tokens(self.length)

    def farthest(self, n_queries: int, n_keys: int, first: int = 0, skipped: int = 0) -> int:
        last = self.first + self.count
        return self.pattern.farthest(last, self.length)

    @property
    def has_offset_codes(self) -> bool:
        return self.pattern.has_offset_codes

    def offset_codes(self, n_queries: int, n_keys: int) -> Codes:
        query, key, rows = self.pattern.offset_codes(self.first + n_queries, self.length)
        return Codes(query[self.first :], key[self._places("cpu")[:n_keys]], rows)

    # -- plan -------------------------------------------------------------------------------

    def _part(self, first: int, count: int, length: int) -> Tiling:
        whole = plan_of_part(self.pattern, self.first + first, count, self.length)
        return moved(whole, self.runs, length)


@remember(entries=64, mebibytes=64)
def _listed(runs: Stretches, device: str) -> Tensor:
    return listed(runs).to(device)


def moved(plan: Tiling, runs: Stretches, num_keys: int) -> Tiling:
    """A plan whose keys stand where the runs put them, one after the other.

    A key that no query reads may be none of them.
    """
    starts = torch.tensor([low for low, _ in runs], device="cpu")
    sizes = torch.tensor([high - low for low, high in runs], device="cpu")
    new = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])

    def move(place: Places) -> Places:
        first, last = edges(place)
        run = torch.searchsorted(starts, first, right=True) - 1
        inside = bool(((run >= 0) & (last < (starts + sizes)[run.clamp(min=0)])).all())
        if inside and bool((run == run[0]).all()):
            return _shifted(place, int(new[run[0]] - starts[run[0]]))
        keys = place.index()
        run = (torch.searchsorted(starts, keys, right=True) - 1).clamp(min=0)
        return _as_runs(place, (keys - starts[run] + new[run]).clamp(0, max(0, num_keys - 1)))

    groups = [
        TileGroup(one.queries, tuple(move(place) for place in one.keys), one.mask)
        for one in plan.groups
    ]
    return Tiling(plan.num_queries, num_keys, tuple(groups))


def _shifted(place: Places, by: int) -> Places:
    if isinstance(place, Runs) and by % place.size == 0:
        return Runs(place.units + by // place.size, place.size)
    return place.shift(by)


def _as_runs(place: Places, keys: Tensor) -> Places:
    """Keys one by one, or in the runs in which they stood where these are whole still."""
    if isinstance(place, Runs):
        inside = keys.unflatten(1, (-1, place.size))
        units = inside[..., 0] // place.size
        wanted = units[..., None] * place.size + torch.arange(place.size, device="cpu")
        if torch.equal(inside, wanted):
            return Runs(units, place.size)
    return Lookup(keys)
