"""Biases of the logits that are computed inside the tile, never as an n x n tensor."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from foveal.common.memo import remember
from foveal.ops.table import Alibi, TableBias
from foveal.patterns import Halo, Pattern
from foveal.patterns.subclasses import is_a
from foveal.patterns.tiling import TileGroup

MASKED = -1e30
"""Logit of a masked pair: its weight is exactly zero, and sums with it stay finite."""


def finite(bias: Tensor, dtype: torch.dtype) -> Tensor:
    """A bias in another precision, without making infinities of its finite numbers.

    Only -inf means that a pair does not exist: the lowest number of a dtype, which some use as a
    mask, stays a number, and a row of nothing else is a row of equal logits.
    """
    if torch.promote_types(bias.dtype, dtype) == dtype:
        return bias.to(dtype)
    limits, kept = torch.finfo(dtype), bias.detach()
    outside = ((kept < limits.min) & (kept > -torch.inf)) | (kept > limits.max)
    # what is clamped has a gradient as well
    clamped = kept.clamp(limits.min, limits.max) + (bias - kept)
    return torch.where(outside, clamped, bias).to(dtype)


LOWEST = MASKED / 4
"""The lowest bias that still allows a pair: a row whose biases are all so low has a mean."""


def bounded(bias: Tensor) -> Tensor:
    """A bias, of any shape, that adds up in any precision: only -inf forbids a pair."""
    return torch.where(bias == -torch.inf, MASKED, bias.clamp(min=LOWEST))


class WindowBias(NamedTuple):
    """Query-dependent bias of a Halo window, factorised into its rows and columns.

    The logit of a query and the key in row `a` and column `c` of the query's block window gains
    `rows[..., query, a] + columns[..., query, c]`; row 0 is the topmost row of the halo, inside
    the image or not. Ramachandran et al., "Stand-Alone Self-Attention in Vision Models" (2019).

    rows: (batch, heads, n_queries, block height + 2 halo height)
    columns: (batch, heads, n_queries, block width + 2 halo width)
    """

    rows: Tensor
    columns: Tensor

    def check(self, q: Tensor, pattern: Pattern) -> None:
        """Raise ValueError if it does not fit queries (batch, heads, n_queries, head_dim)."""
        if not is_a(pattern, Halo):
            raise ValueError(
                f"a WindowBias needs a Halo pattern, got {pattern}; pass a tensor bias instead."
            )
        if len(pattern.sides) != len(self):
            raise ValueError(
                f"a WindowBias needs a Halo over (height, width), got size={pattern.size}; pass a "
                "tensor bias instead."
            )
        for name, values, size in zip(self._fields, self, pattern.window, strict=True):
            expected = (*q.shape[:3], size)
            if not isinstance(values, Tensor) or not values.dtype.is_floating_point:
                kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
                raise ValueError(f"WindowBias.{name} must be a floating tensor, got {kind}.")
            if tuple(values.shape) != expected or values.device != q.device:
                raise ValueError(
                    f"WindowBias.{name} must be (batch, heads, n_queries, window) = {expected} "
                    f"on {q.device}, got {tuple(values.shape)} on {values.device}."
                )

    def dense(
        self, pattern: Halo, n_keys: int | None = None, first: int = 0, skipped: int = 0
    ) -> Tensor:
        """The same bias as a (batch, heads, n_queries, n_keys) tensor, in float32 at least.

        n_keys: so many pixels of the image; all of them when None.
        first, skipped: the queries and the pixels in front that are left out.
        """
        n_keys = pattern.height * pattern.width if n_keys is None else n_keys
        q = torch.arange(first, first + self.rows.shape[2], device=self.rows.device)
        k = torch.arange(skipped, skipped + n_keys, device=self.rows.device)
        total = None
        wide = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in self)
        places = zip(
            wide, pattern.query_coordinates(q), pattern.coordinates(k), (0, 1), strict=True
        )
        for values, q_at, k_at, axis in places:
            place = window_place(pattern, q_at[:, None], k_at[None, :], axis)
            place = place.clamp(0, pattern.window[axis] - 1)
            part = values.gather(-1, place.expand(*values.shape[:2], *place.shape))
            total = part if total is None else total + part
        assert total is not None
        return total


PyramidBias = TableBias
"""A TableBias by the name that it has for a Pyramid."""

Bias = Tensor | WindowBias | TableBias | Alibi
"""What `attend` takes as a bias."""


def settle(
    bias: WindowBias | TableBias | Alibi, q: Tensor, k: Tensor, pattern: Pattern
) -> WindowBias | TableBias:
    """A structured bias as implementations take it, for tensors as in `attend`."""
    if isinstance(bias, Alibi):
        return bias.tabled(q, pattern.farthest(q.shape[2], k.shape[2]))
    return bias.settled(pattern, q.shape[1]) if isinstance(bias, TableBias) else bias


def window_place(pattern: Halo, q_at: Tensor, k_at: Tensor, axis: int) -> Tensor:
    """Where a key stands in the window of the query's block: 0 ... window - 1 on one axis.

    q_at, k_at: coordinates on that axis, of shapes that broadcast.
    """
    block, halo = pattern.block[axis], pattern.halo[axis]
    return k_at - (q_at // block * block - halo)


@remember(entries=256)
def window_columns(pattern: Halo, group: TileGroup) -> Tensor:
    """One-hot places of a tile's keys: (tile_k, window height + window width).

    All tiles of a group of a Halo plan read the same part of the window. Appended to the keys,
    and (rows, columns) to the queries, these columns add the bias within the product q k^T.
    """
    return torch.cat(
        [
            torch.nn.functional.one_hot(place, size)
            for place, size in zip(window_places(pattern, group), pattern.window, strict=True)
        ],
        dim=1,
    )


def window_places(pattern: Halo, group: TileGroup) -> tuple[Tensor, Tensor]:
    """(rows, columns) of a tile's keys in its block's window: (tile_k) each."""
    q = group.queries.index()[0, :1]
    k = group.key_index()[0]
    places = zip(pattern.query_coordinates(q), pattern.coordinates(k), (0, 1), strict=True)
    rows, columns = (window_place(pattern, q_at, k_at, axis) for q_at, k_at, axis in places)
    return rows, columns
