"""Where keys and values lie in memory: a ring with a static prefix, and a log that forgets.

Both hold one tensor `data` (2, batch, kv_heads, places, head_dim), keys first, and answer these
calls: `write` tokens at consecutive positions, `push` the next one, `read` those at given
positions, or `held_data`, all of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from foveal.caches.state import lasting

FIRST_PLACES = 64
"""Places of a log whose final length is unknown."""


class _Store:
    data: Tensor

    @property
    def num_bytes(self) -> int:
        return self.data.numel() * self.data.element_size()

    @lasting
    def _allocate(self, like: Tensor, places: int) -> Tensor:
        return like.new_empty((*like.shape[:3], places, like.shape[4]))

    def _gather(self, places: Tensor) -> Tensor:
        return self.data.index_select(3, places.to(self.data.device))

    @property
    def in_use(self) -> int:
        raise NotImplementedError

    def claim(self, position: int) -> int:
        raise NotImplementedError

    def held_data(self) -> Tensor:
        """All that is held, in any order."""
        return self.data.narrow(3, 0, self.in_use)

    def push(self, k: Tensor, v: Tensor, position: int) -> None:
        """Store k and v (batch, kv_heads, 1, head_dim) of the next position."""
        place = self.claim(position)
        column = self.data.select(3, place)
        column[0] = k.select(2, 0)
        column[1] = v.select(2, 0)


class Ring(_Store):
    """The first `prefix` tokens for ever, and the `window` latest of the others.

    Args:
        like: empty tensor with the sizes, dtype and device of the data.
        prefix, window: as in `Pattern.horizon`.
        max_length: most tokens to come; the ring is no larger than they need.
        bench: places for a few tokens of the ring that are read together with the prefix. They
            are copied there, before the prefix, so that the prefix itself need not be copied.
    """

    def __init__(
        self, like: Tensor, prefix: int, window: int, max_length: int | None, bench: int = 0
    ) -> None:
        if max_length is not None:
            prefix = min(prefix, max_length)
            window = min(window, max_length - prefix)
        self.prefix, self.window = prefix, max(1, window)
        self.bench = min(bench, self.window) if prefix else 0
        self.whole = self._allocate(like, self.bench + self.prefix + self.window)
        self.length = 0

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        """The prefix and the ring."""
        return self.whole[:, :, :, self.bench :]

    @property
    def num_bytes(self) -> int:
        return self.whole.numel() * self.whole.element_size()

    @lasting
    def clone(self) -> Ring:
        twin = copy.copy(self)
        twin.whole = self.whole.clone()
        return twin

    @lasting
    def select(self, rows: Tensor) -> Ring:
        """A copy of chosen rows (chosen,) of the batch."""
        twin = copy.copy(self)
        twin.whole = self.whole.index_select(1, rows)
        return twin

    def write(self, kv: Tensor, first: int) -> None:
        """Store kv (2, batch, kv_heads, tokens, head_dim) of the positions from `first` on."""
        length = first + kv.shape[3]
        positions = self.stays(first, length, length)
        self.put(kv.index_select(3, (positions - first).to(kv.device)), positions, length)

    def stays(self, first: int, last: int, length: int) -> Tensor:
        """Those of the positions [first, last) that are held after `length` tokens."""
        positions = torch.arange(first, last, device="cpu")
        return positions[(positions < self.prefix) | (positions >= length - self.window)]

    def put(self, kv: Tensor, positions: Tensor, length: int) -> None:
        """Store kv (2, batch, kv_heads, keys, head_dim), all that stays of the newest tokens."""
        self.length = length
        places = self._places(positions).to(self.data.device)
        self.data.index_copy_(3, places, kv.to(self.whole.dtype))

    @property
    def in_use(self) -> int:
        """Places that hold something, the first ones."""
        return min(self.length, self.prefix + self.window)

    def claim(self, position: int) -> int:
        """The place for the next position, which counts as filled."""
        self.length = position + 1
        return self._place(position)

    def read(self, positions: Tensor, ordered: bool = False) -> Tensor:
        """The tokens at `positions` (2, batch, kv_heads, keys, head_dim).

        `ordered=False` allows any order, which a softmax does not see: a query that reads all
        that is held then takes the buffer as it lies.
        """
        count, held = len(positions), min(self.length, self.prefix + self.window)
        if count == held and not ordered:
            return self.data[:, :, :, :held]
        if count and self._place(int(positions[-1])) == count - 1 and self._is_front(positions):
            return self.data[:, :, :, :count]
        recent = count - self.prefix
        if (
            ordered
            or not 0 < recent <= self.bench
            or int(positions[self.prefix - 1]) >= self.prefix
        ):
            return self._gather(self._places(positions))
        near = self._gather(self._places(positions[self.prefix :]))
        self.whole[:, :, :, self.bench - recent : self.bench] = near
        return self.whole[:, :, :, self.bench - recent : self.bench + self.prefix]

    def _is_front(self, positions: Tensor) -> bool:
        """Whether these many positions lie, in order, at the front of the data."""
        return torch.equal(self._places(positions), torch.arange(len(positions), device="cpu"))

    def _place(self, position: int) -> int:
        if position < self.prefix:
            return position
        return self.prefix + (position - self.prefix) % self.window

    def _places(self, positions: Tensor) -> Tensor:
        turned = self.prefix + (positions - self.prefix) % self.window
        return torch.where(positions < self.prefix, positions, turned)


class Log(_Store):
    """Tokens in the order they came; those that nothing can read any more make room when needed.

    Args:
        like: empty tensor with the sizes, dtype and device of the data.
        keeps: position -> ascending positions that must be held after it.
        max_length: most tokens to come, None when unknown.
    """

    @lasting
    def __init__(
        self, like: Tensor, keeps: Callable[[int], range | Tensor], max_length: int | None
    ) -> None:
        self.keeps, self.max_length = keeps, max_length
        places = FIRST_PLACES
        if max_length is not None:
            # the pattern at its end tells a full history from a thinned one
            places = min(max_length, max(FIRST_PLACES, len(keeps(max_length - 1)) + 1))
        self.data = self._allocate(like, places)
        self.held = torch.empty(
            places, dtype=torch.long, device="cpu"
        )  # position of each place, ascending
        self.count = 0

    @lasting
    def clone(self) -> Log:
        twin = copy.copy(self)
        twin.data, twin.held = self.data.clone(), self.held.clone()
        return twin

    @lasting
    def select(self, rows: Tensor) -> Log:
        """A copy of chosen rows (chosen,) of the batch."""
        twin = copy.copy(self)
        twin.data, twin.held = self.data.index_select(1, rows), self.held.clone()
        return twin

    def write(self, kv: Tensor, first: int) -> None:
        """Store kv (2, batch, kv_heads, tokens, head_dim) of the positions from `first` on."""
        length = first + kv.shape[3]
        positions = self.stays(first, length, length)
        if len(positions) < kv.shape[3]:
            kv = kv.index_select(3, (positions - first).to(kv.device))
        self.put(kv, positions, length)

    def stays(self, first: int, last: int, length: int) -> Tensor:
        """Those of the positions [first, last) that are held after `length` tokens."""
        positions, newest = torch.arange(first, last, device="cpu"), length - 1
        if length - first < 2:
            return positions
        # what the newest token itself reads must stay too, so ask on its behalf
        return positions[self._is_kept(positions, newest - 1) | (positions == newest)]

    def put(self, kv: Tensor, positions: Tensor, length: int) -> None:
        """Store kv (2, batch, kv_heads, keys, head_dim), all that stays of the newest tokens."""
        last = length - 1
        if self.count + len(positions) > self.data.shape[3]:
            self._make_room(len(positions), last - 1)
        end = self.count + len(positions)
        self.data[:, :, :, self.count : end] = kv
        self.held[self.count : end] = positions
        self.count = end

    @property
    def in_use(self) -> int:
        """Places that hold something, the first ones."""
        return self.count

    def claim(self, position: int) -> int:
        """The place for the next position, which counts as filled."""
        if self.count == self.data.shape[3]:
            self._make_room(1, position - 1)
        self.held[self.count] = position
        self.count += 1
        return self.count - 1

    def read(self, positions: Tensor, ordered: bool = False) -> Tensor:
        """The tokens at `positions`, ascending (2, batch, kv_heads, keys, head_dim)."""
        if len(positions) == self.count:
            return self.data[:, :, :, : self.count]
        places = torch.searchsorted(self.held[: self.count], positions)
        if len(places) and int(places[-1]) - int(places[0]) + 1 == len(places):
            return self.data[:, :, :, int(places[0]) : int(places[-1]) + 1]
        return self._gather(places)

    def _is_kept(self, positions: Tensor, after: int) -> Tensor:
        kept = self.keeps(after)
        if isinstance(kept, range):
            return (positions >= kept.start) & (positions < kept.stop)
        return torch.isin(positions, kept.to("cpu"))

    @lasting
    def _make_room(self, tokens: int, after: int) -> None:
        """Forget what nothing reads after position `after`; grow when that frees too little."""
        held = self.held[: self.count]
        stays = self._is_kept(held, after).nonzero()[:, 0]
        places = self.data.shape[3]
        if len(stays) + tokens > 3 * places // 4:  # else the next call would come too soon
            places = max(len(stays) + tokens, 2 * places)
            if self.max_length is not None:
                places = min(places, self.max_length)
        old, old_held = self._gather(stays), held[stays]
        if places != self.data.shape[3]:
            self.data = self._allocate(self.data, places)
            self.held = torch.empty(places, dtype=torch.long, device="cpu")
        self.count = len(stays)
        self.data[:, :, :, : self.count] = old
        self.held[: self.count] = old_held
