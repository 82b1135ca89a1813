"""Dropout that does not depend on who computes: by example in a training, by place in shards."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from torch import Tensor, nn

from foveal.common.by_example import dropout
from foveal.ops.drop import ByPlace

Drawn = Callable[[float, int, Tensor], Tensor]
"""(rate, number of the layer, x (batch, tokens, features)) -> x with some of it dropped."""


class _Here(threading.local):
    """Who draws in this thread, and for which part of the model."""

    drawn: Drawn | None = None
    part: int = 0


_HERE = _Here()


@contextlib.contextmanager
def drawing(drawn: Drawn, part: int) -> Iterator[None]:
    """Let `drawn` do what each PlacedDropout would, in a part of the model that has a number.

    Layers that share weights are parts of their own, and so draw otherwise.
    """
    before = _HERE.drawn, _HERE.part
    _HERE.drawn, _HERE.part = drawn, part
    try:
        yield
    finally:
        _HERE.drawn, _HERE.part = before


def drawing_part() -> int:
    """Number of the part of the model that runs."""
    return _HERE.part


class Dropout(nn.Dropout):
    """torch's, but in a training what is dropped of an example depends on the example alone.

    Any number of processes and micro-batches then drop the same; see
    `foveal.common.by_example`. In a model of your own, take this one.

    Args:
        p: probability of dropping.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(examples, ...) -> same; the first dimension may hold several rows of an example."""
        return dropout(x, self.p, self.training)


class PlacedDropout(Dropout):
    """Dropout that lets another draw, where one does.

    Attributes:
        number: of the layer, so that each draws otherwise.
    """

    number: int

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, features) -> same."""
        if _HERE.drawn is None or not self.training:
            return super().forward(x)
        return _HERE.drawn(self.p, self.number, x)


def place_dropout(model: nn.Module) -> bool:
    """Number all that drops in a model, and let it draw by place; whether anything does.

    The modules stay who they are, with their hooks and names.
    """
    found = False
    for number, module in enumerate(model.modules()):
        if isinstance(module, nn.LayerNorm):  # a branch is known by its norm
            module.dropout_number = number  # type: ignore[assignment]
        if isinstance(module, nn.Dropout) and type(module) in (nn.Dropout, Dropout) and module.p:
            module.__class__ = PlacedDropout
            module.number = number  # type: ignore[assignment]
            found = True
        rate = vars(module).get("dropout")
        if isinstance(rate, float) and rate > 0:
            module.dropout = ByPlace.of(rate, number)  # type: ignore[assignment]
            found = True
    return found
