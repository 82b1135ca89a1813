"""Positions as what the logits of a pair gain by its distance: ALiBi, and the buckets of T5."""

from __future__ import annotations

import torch
from torch import nn

from foveal.common.arguments import checked
from foveal.layers.checks import check_sizes
from foveal.ops import TableBias, alibi
from foveal.ops.table import Alibi


class PositionBias(nn.Module):
    """What layers add to their logits, handed in as `rotary`; all layers of a model share one.

    Attributes:
        heads: of the layers that share it.
    """

    heads: int

    def forward(self) -> TableBias | Alibi:
        """The bias as `attend` takes it."""
        raise NotImplementedError


class AlibiPositions(PositionBias):
    """Each head's logits lose a slope times the distance (Press et al. 2022); see `foveal.alibi`.

    Args:
        heads: number of heads.
        learned: the slopes are parameters, which begin as the paper's.

    Raises:
        ValueError: heads is not positive.
    """

    @checked
    def __init__(self, heads: int, learned: bool = False) -> None:
        super().__init__()
        check_sizes(heads=heads)
        self.heads = heads
        # what is not learned is made anew, so that no cast of the model rounds it
        self.slopes = nn.Parameter(alibi(heads).slopes.float()) if learned else None

    def extra_repr(self) -> str:
        return f"heads={self.heads}, learned={self.slopes is not None}"

    def forward(self) -> Alibi:
        return alibi(self.heads, self.slopes)


class T5Positions(PositionBias):
    """A number a head and bucket of distances (Raffel et al. 2020); see `TableBias.t5`.

    Args:
        heads: number of heads.
        buckets, max_distance: rows of the table; the distance from which on all share one.
        bidirectional: half of the buckets are for later keys; a decoder has none.

    Raises:
        ValueError: sizes are not positive, or leave no bucket by logarithm.
    """

    @checked
    def __init__(
        self, heads: int, buckets: int = 32, max_distance: int = 128, bidirectional: bool = False
    ) -> None:
        super().__init__()
        check_sizes(heads=heads, buckets=buckets, max_distance=max_distance)
        near = buckets // (4 if bidirectional else 2)
        if not 0 < near < max_distance or (bidirectional and buckets % 2):
            kind = "an even number of buckets" if bidirectional else "two buckets or more"
            raise ValueError(
                f"T5Positions needs {kind}, half of them below max_distance, got {buckets=}, "
                f"{max_distance=}."
            )
        self.heads, self.max_distance, self.bidirectional = heads, max_distance, bidirectional
        self.table = nn.Parameter(torch.randn(buckets, heads) * 0.02)

    def extra_repr(self) -> str:
        words = ("heads", "max_distance", "bidirectional")
        return ", ".join(f"{word}={getattr(self, word)}" for word in words)

    def forward(self) -> TableBias:
        return TableBias.t5(self.table, self.bidirectional, self.max_distance)
