"""Tokens that are no rows of a batch: documents that share rows, parts of a longer sequence."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from foveal.ops import attend
from foveal.patterns import Packed, Pattern


class Context:
    """What stands in the place of a mask where a layer's tokens are not simply rows of a batch.

    Attributes:
        mask: (batch, tokens) bool, True = real; None for all.
        attend: what computes attention, called as `foveal.attend`.
        first: place of the first of these tokens in the sequence.
        length: tokens of the whole sequence, of which these are a part.
        spans: places [first, last) of each part of it, in order.
        part: which of them this is.
    """

    mask: Tensor | None = None
    attend: Callable[..., Any] = staticmethod(attend)
    first: int = 0
    length: int
    spans: Sequence[tuple[int, int]]
    part: int = 0

    def within(self, pattern: Pattern) -> Pattern:
        """The pattern that takes the place of a layer's."""
        return pattern

    def turn(self, positions: Any) -> Any:
        """Rotary positions of these tokens; called as those of a layer."""
        raise NotImplementedError

    def places(self, count: int, device: torch.device) -> Tensor:
        """Where `count` tokens from the first on stand: (count,) int64."""
        return torch.arange(self.first, self.first + count, device=device)

    def rows(self, x: Tensor, wanted: Sequence[tuple[int, int]]) -> Tensor:
        """Tokens at places [first, last) of the sequence, zeros where it has none.

        Args:
            x: (batch, own tokens, features).
            wanted: places for each part, alike wherever this is asked.

        Returns:
            (batch, last - first, features), those that this part wants.
        """
        raise ValueError(
            "features are handed from token to token within the rows of a batch only, got "
            "documents that share rows."
        )

    def coarser(self, factor: int, mask: Tensor | None) -> Context:
        """That of every `factor`-th token of the sequence; its mask (batch, own coarse tokens)."""
        raise NotImplementedError

    def drawing(self, part: nn.Module | None = None) -> contextlib.AbstractContextManager[None]:
        """While a part of the model runs: who decides what dropout drops of these tokens."""
        return contextlib.nullcontext()

    def agreed(self, x: Tensor) -> Tensor:
        """Small numbers of any shape that every part of the sequence must know alike."""
        return x


def real(mask: Tensor | Context | None) -> Tensor | None:
    """Which tokens are real, (batch, tokens) bool, or None for all: the mask or a context's."""
    return mask.mask if isinstance(mask, Context) else mask


class Packing(Context):
    """What stands in the place of a mask while documents share rows.

    The rows are one after the other then, in a batch of one: x is (1, batch * length, dim).

    Args:
        position_ids: (batch, length) int: 0, 1, 2, ... in each document, as transformers and trl
            number packed rows. A row begins a document.

    Attributes:
        lengths: tokens of each document, in reading order over the rows.

    Raises:
        ValueError: positions that do not count up from 0 in each document.
    """

    def __init__(self, position_ids: Tensor) -> None:
        if position_ids.ndim != 2 or position_ids.is_floating_point():
            raise ValueError(
                "position_ids must be (batch, length) of an int type, got "
                f"{position_ids.dtype} {tuple(position_ids.shape)}."
            )
        flat = position_ids.flatten().long()
        places = torch.arange(len(flat), device=flat.device)
        begins = (flat == 0).nonzero()[:, 0]
        ends = torch.cat([begins[1:], begins.new_tensor([len(flat)])])[: len(begins)]
        wanted = places - begins.repeat_interleave(ends - begins) if len(begins) else flat + 1
        rows = position_ids[:, :1]
        if len(wanted) != len(flat) or not torch.equal(wanted, flat) or bool(rows.any()):
            raise ValueError(
                "position_ids must count 0, 1, 2, ... in each document and begin with 0 in each "
                "row, for a document that is cut at the end of a row goes on as another one."
            )
        self.lengths = tuple((ends - begins).tolist())
        self._offset = flat - places

    def within(self, pattern: Pattern) -> Packed:
        """The pattern, from 0 on in each document."""
        return Packed(pattern, self.lengths)

    def turn(self, positions: Any) -> Any:
        """Rotary positions that restart; called as these are, with any offset."""
        return lambda x, offset=0, stride=1: positions(x, self._offset, stride)
