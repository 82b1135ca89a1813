"""What all kinds of positions are to an attention layer.

Three ways to tell a layer where its tokens stand, all given as its `rotary`:

- a `Positions` turns queries and keys (Rotary, InterleavedRotary, GridRotary); it has no weights,
  and all layers of a model share one;
- a `Relative` is what the relative attention layers of a model share; each makes its own
  RelativeTerms of it, which say what a pair of tokens gains;
- a `PositionBias` says what a pair gains by its distance alone (AlibiPositions, T5Positions).

Beside them a layer may learn a table, over a pattern that takes one (such as a Pyramid).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foveal.patterns import Pattern


class Positions(nn.Module):
    """Turns what a layer projects, so that scores see where tokens stand."""

    def forward(self, x: Tensor, offset: int | Tensor = 0, stride: int = 1) -> Tensor:
        """Turn the tokens at positions offset, offset + stride, ...

        Args:
            x: (batch, tokens, heads, dim_head).
            offset: an int, or a tensor () whose value no shape depends on.

        Returns:
            tensor of the shape and dtype of x.
        """
        raise NotImplementedError


def relative_table(pattern: Pattern, wanted: bool | str, heads: int) -> nn.Parameter | None:
    """A table of relative positions (pattern.bias_size, heads or 1), or None.

    Raises:
        ValueError: another word than "shared", or a pattern whose tables may have any size.
    """
    if wanted not in (True, False, "shared"):
        raise ValueError(f"relative_bias must be True, False or 'shared', got {wanted!r}.")
    if not wanted:
        return None
    size = pattern.bias_size
    if size is None:
        raise ValueError(
            "relative_bias needs a pattern that is biased_by_table, such as a Pyramid, or lies on "
            f"a grid, such as a Neighborhood, got {pattern}."
        )
    tables = 1 if wanted == "shared" else heads
    return nn.Parameter(torch.randn(size, tables) * 0.1)
