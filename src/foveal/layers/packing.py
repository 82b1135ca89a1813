"""Several documents in the rows of a batch, each as if it were alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from foveal.patterns import Packed, Pattern


class Packing:
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
