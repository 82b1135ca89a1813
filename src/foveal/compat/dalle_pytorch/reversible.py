"""The reversible layers of dalle-pytorch: as h-transformer-1d's, but the mean of both streams."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from foveal.compat import reversible
from foveal.compat.reversible import (
    Deterministic,
    ReversibleBlock,
    Route,
    SequentialSequence,
    route_args,
)

__all__ = [
    "route_args",
    "Deterministic",
    "ReversibleBlock",
    "SequentialSequence",
    "ReversibleSequence",
]


class ReversibleSequence(reversible.ReversibleSequence):
    """Pairs of branches with memory that does not grow with the depth; the mean of both streams.

    Args: as in SequentialSequence.
    """

    def __init__(
        self,
        blocks: nn.ModuleList,
        args_route: Route = {},  # noqa: B006 - the package's default; never written to
    ) -> None:
        super().__init__(blocks, args_route)

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """(batch, tokens, dim) -> same; keywords go where args_route sends them."""
        return super().forward(x, **kwargs) / 2
