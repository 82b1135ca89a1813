"""The decoding state of a stack of layers, or of a whole model."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from foveal.caches.summary import summary

lasting = torch.inference_mode(False)
"""Decorator: tensors made within can be written to later, in inference mode and out of it."""


@dataclass
class DecodingState:
    """The states of parts that decode together, in the order in which they run.

    Attributes:
        parts: one state a layer or stage: an AttentionCache, a DecodingState, anything with
            `num_bytes`, `clone()` and `select(rows)`; None for a part that remembers nothing.
        position: number of tokens seen so far, which is the position of the next one.
        tensors: what a part remembers besides the keys and values, (batch, ...) each, by name.
        place: () int64, the position as a tensor, where the state lies at fixed addresses (see
            foveal.caches.fixed); `position` then tells the part of a model, not the place.
        max_length: most tokens that will come, where it is known.
    """

    parts: list[Any]
    position: int = 0
    tensors: dict[str, Tensor] = field(default_factory=dict)
    place: Tensor | None = None
    max_length: int | None = None

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return summary(self)

    @property
    def num_bytes(self) -> int:
        """Bytes of memory held by all parts."""
        own = sum(t.numel() * t.element_size() for t in self.tensors.values())
        return own + sum(part.num_bytes for part in self.parts if part is not None)

    @lasting
    def clone(self) -> DecodingState:
        """A copy that shares no buffer with this state."""
        twin = copy.copy(self)
        twin.parts = [None if part is None else part.clone() for part in self.parts]
        twin.tensors = {name: value.clone() for name, value in self.tensors.items()}
        return twin

    @lasting
    def select(self, rows: Tensor) -> DecodingState:
        """Chosen rows of the batch, in any order and as often as wanted: a copy.

        Args:
            rows: (new batch,) int64, which row of this state each one goes on from.
        """
        twin = copy.copy(self)
        twin.parts = [None if part is None else part.select(rows) for part in self.parts]
        twin.tensors = {name: value.index_select(0, rows) for name, value in self.tensors.items()}
        return twin
