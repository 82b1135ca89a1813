"""foveal's decoding state as a Cache of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from foveal.layers.prepared import Step
from foveal.models.causal import CausalLM


@dataclass
class _Group:
    """Rows of the batch that have had as many real tokens, and so decode together.

    Attributes:
        rows: their places in the batch, ascending.
        state: of the model; None before their first token.
        last: (rows, num_tokens) logits after their newest token; None before the first.
    """

    rows: list[int]
    state: Any = None
    last: Tensor | None = None

    def select(self, rows: list[int], chosen: list[int]) -> _Group:
        """A group at other places of the batch, of chosen members of this one."""
        if chosen == list(range(len(self.rows))):
            return _Group(rows, self.state, self.last)
        if self.state is None:
            return _Group(rows)
        assert self.last is not None
        index = torch.tensor(chosen, device=self.last.device)
        return _Group(rows, _select(self.state, index), self.last.index_select(0, index))

    def clone(self) -> _Group:
        return _Group(
            list(self.rows), None if self.state is None else self.state.clone(), self.last
        )


class FovealCache(Cache):
    """What `generate` of transformers carries from token to token: bounded by the pattern.

    Padding is left out: rows that differ in their real tokens have states of their own, each at
    its own position, so a row decodes as it would alone. Rows cannot be cut back (`crop`), for a
    ring has forgotten what a shorter sequence would still read.

    Args:
        max_length: most tokens that will ever come, where it is known; None: buffers grow.
        prepared: the model stays as it is, as within `generate`: steps are prepared once.
    """

    def __init__(self, max_length: int | None = None, prepared: bool = False) -> None:
        super().__init__(layers=[])
        self.max_length, self.prepared = max_length, prepared
        self.columns = 0
        self._groups: list[_Group] = []
        self._steps: dict[int, Step] = {}

    # -- reading ----------------------------------------------------------------------------

    @torch.no_grad()
    def read(
        self, model: CausalLM, tokens: Tensor, real: Tensor | None, only_last: bool = False
    ) -> Tensor:
        """Logits of more tokens.

        Args:
            tokens: (batch, count) int.
            real: (batch, count) bool, True = real; None: all are.
            only_last: those of the last column are enough.

        Returns:
            (batch, count or 1, num_tokens); of padding, those of the real token before it, and
            zeros where there is none.

        Raises:
            ValueError: another batch, or more tokens than the model has places for.
        """
        batch, width = tokens.shape
        if self._groups and batch != self.batch_size:
            raise ValueError(
                f"input_ids must have the {self.batch_size} rows that the cache has seen, got "
                f"{batch}."
            )
        self._groups = self._groups or [_Group(list(range(batch)))]
        counts = [width] * batch if real is None else real.sum(1).tolist()
        self._groups = [part for group in self._groups for part in _split(group, counts)]
        parts = []
        for group in self._groups:
            count = counts[group.rows[0]]
            parts.append(self._read(model, group, count, tokens, real, only_last))
        self.columns += width
        if len(parts) == 1:
            return parts[0]
        out = parts[0].new_zeros((batch, *parts[0].shape[1:]))
        for group, part in zip(self._groups, parts, strict=True):
            out[group.rows] = part
        return out

    def _read(
        self,
        model: CausalLM,
        group: _Group,
        count: int,
        tokens: Tensor,
        real: Tensor | None,
        only_last: bool,
    ) -> Tensor:
        """Logits of a group, which has `count` real tokens a row: (rows, columns or 1, logits)."""
        mine = tokens if len(group.rows) == len(tokens) else tokens[group.rows]
        before = group.last
        if real is None:
            logits = self._advance(model, group, mine, only_last)
            return logits[:, -1:] if only_last else logits
        own = real if len(group.rows) == len(tokens) else real[group.rows]
        if before is None:
            weight = model.token_emb.weight
            before = torch.zeros(
                len(mine), model.num_tokens, dtype=weight.dtype, device=mine.device
            )
        logits = before[:, None]
        if count:
            new = self._advance(model, group, mine[own].view(-1, count), only_last)
            logits = torch.cat((logits.to(new.dtype), new), 1)
        if only_last:
            return logits[:, -1:]
        place = own.cumsum(1)  # 0: that of the token before these
        return logits.gather(1, place[..., None].expand(-1, -1, logits.shape[-1]))

    def _advance(self, model: CausalLM, group: _Group, tokens: Tensor, only_last: bool) -> Tensor:
        """Real tokens (rows, count) into the state of a group, and their logits, or the last."""
        count = tokens.shape[1]
        if group.state is None:
            first = tokens if only_last else tokens[:, :1]
            logits, group.state = model.prefill(first, self.max_length)
            logits = logits[:, None]
            if first.shape[1] < count:
                others, group.state = model.extend(tokens[:, 1:], group.state)
                logits = torch.cat((logits, others), 1)
        elif count == 1:
            logits, group.state = self._step(model, len(tokens))(tokens[:, 0], group.state)
            logits = logits[:, None]
        else:
            logits, group.state = model.extend(tokens, group.state)
        group.last = logits[:, -1]
        return logits

    def _step(self, model: CausalLM, rows: int) -> Step:
        if not self.prepared:
            return model.step
        if rows not in self._steps:
            self._steps[rows] = model.stepper(rows)
        return self._steps[rows]

    # -- rows -------------------------------------------------------------------------------

    def _take(self, source: Sequence[int]) -> None:
        """Make the batch of the rows `source`, in that order."""
        groups = []
        for group in self._groups:
            places = {row: place for place, row in enumerate(group.rows)}
            rows = [row for row, one in enumerate(source) if one in places]
            if rows:
                groups.append(group.select(rows, [places[source[row]] for row in rows]))
        self._groups = groups

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i goes on from row beam_idx[i]."""
        self._take(beam_idx.tolist())

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices`: their numbers, or a bool mask."""
        rows = torch.arange(self.batch_size, device=indices.device)[indices]
        self._take(rows.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row `repeats` times."""
        self._take([row for row in range(self.batch_size) for _ in range(repeats)])

    @property
    def batch_size(self) -> int:
        """Rows; -1 before the first token."""
        return sum(len(group.rows) for group in self._groups) if self._groups else -1

    def reset(self) -> None:
        """Forget everything."""
        self._groups, self.columns = [], 0

    def __deepcopy__(self, memo: dict[int, Any]) -> FovealCache:
        twin = FovealCache(self.max_length, self.prepared)
        twin.columns, twin._groups = self.columns, [group.clone() for group in self._groups]
        memo[id(self)] = twin
        return twin

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_steps": {}}

    # -- what transformers asks of a cache --------------------------------------------------

    @property
    def num_bytes(self) -> int:
        """Bytes of memory held."""
        states = [group.state for group in self._groups if group.state is not None]
        return sum(one.nbytes if isinstance(one, Tensor) else one.num_bytes for one in states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns of input_ids that were read, padding included."""
        return self.columns

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """Most tokens that may come; -1 where the buffers grow."""
        return -1 if self.max_length is None else self.max_length

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """(columns, 0) of the attention mask for so many more tokens."""
        return self.columns + query_length, 0

    def __len__(self) -> int:
        return 1

    def __repr__(self) -> str:
        rows = max(self.batch_size, 0)
        return f"FovealCache(rows={rows}, columns={self.columns}, bytes={self.num_bytes})"

    is_compileable = is_croppable = False
    is_sliding = is_linear = is_dummy = (False,)

    @property
    def is_initialized(self) -> bool:
        """Whether there is anything in it."""
        return bool(self._groups)

    def crop(self, tokens_to_remove: int) -> None:
        """Refused, unless nothing is to go."""
        if tokens_to_remove:
            _refuse("crop", "a state bounded by its pattern cannot go back; clone it with copy")

    def update(self, *args: Any, **options: Any) -> NoReturn:
        """Refused: layers of foveal write to their own state."""
        _refuse("update", "the model itself writes to it")

    def early_initialization(self, *args: Any, **options: Any) -> NoReturn:
        """Refused: the first tokens say what is needed."""
        _refuse("early_initialization", "its sizes come with the first tokens")


def _refuse(name: str, why: str) -> NoReturn:
    raise ValueError(f"a FovealCache has no {name}: {why}.")


def _split(group: _Group, counts: list[int]) -> list[_Group]:
    """A group by how many real tokens come now to each of its rows."""
    members: dict[int, list[int]] = {}
    for place, row in enumerate(group.rows):
        members.setdefault(counts[row], []).append(place)
    if len(members) == 1:
        return [group]
    return [group.select([group.rows[one] for one in some], some) for some in members.values()]


def _select(state: Any, rows: Tensor) -> Any:
    if isinstance(state, Tensor):  # the tokens so far, of a model that starts over each time
        return state.index_select(0, rows)
    if not hasattr(state, "select"):
        raise TypeError(
            f"rows of a {type(state).__name__} cannot be chosen, as beams and padding need it; "
            "give it a method select(rows), or pass use_cache=False."
        )
    return state.select(rows)
