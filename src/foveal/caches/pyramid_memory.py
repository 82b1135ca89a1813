"""Another sequence as a Pyramid's queries read it while they come one at a time."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.common.memo import remember
from foveal.ops.bias import MASKED, PyramidBias
from foveal.ops.pooling import pool_keys
from foveal.patterns import Pyramid
from foveal.patterns.pyramid_tiles import _PyramidTiles


class PyramidMemory:
    """Keys and values of a sequence at all levels: a query reads O(block * levels) of them.

    The cross-attention of a decoder: the keys are known, the queries come one after the other.

    Args:
        pattern: a Pyramid that is not causal and has fine queries.
        k, v: (batch, kv_heads, n_keys, head_dim or head_dim_v), positions already applied.
        key_mask: (batch, n_keys) bool, True = real.
        max_queries: how many queries will come at most; n_keys when None.

    Attributes:
        keys, values: (batch, kv_heads, joined, head_dim), the levels side by side.

    Raises:
        ValueError: another pattern, or no keys.
    """

    def __init__(
        self,
        pattern: Pyramid,
        k: Tensor,
        v: Tensor,
        key_mask: Tensor | None = None,
        max_queries: int | None = None,
    ) -> None:
        if not isinstance(pattern, Pyramid) or pattern.causal or pattern.queries != "fine":
            raise ValueError(
                "pattern must be Pyramid(causal=False, queries='fine'), whose queries do not wait "
                f"for each other, got {pattern}."
            )
        n_keys = k.shape[2]
        if not n_keys:
            raise ValueError(f"k must hold at least one token, got shape {tuple(k.shape)}.")
        self.max_queries = n_keys if max_queries is None else max_queries
        self._plan = _PyramidTiles(pattern, self.max_queries, n_keys)
        levels = pool_keys(k, v, key_mask, self._plan.levels, self._plan.unit)
        self.keys, self.values, self._gain = levels.k, levels.v, levels.gain

    @property
    def num_bytes(self) -> int:
        """Bytes of memory held."""
        return sum(t.numel() * t.element_size() for t in (self.keys, self.values, self._gain))

    def clone(self) -> PyramidMemory:
        """A copy; nothing is ever written, so it shares the buffers."""
        return copy.copy(self)

    def attend(
        self, q: Tensor, position: int, scale: float | None = None, bias: PyramidBias | None = None
    ) -> Tensor:
        """Attention of the query at `position`: q (batch, heads, 1, head_dim) -> same, head_dim_v.

        Raises:
            ValueError: a position that is not below max_queries.
        """
        if not 0 <= position < self.max_queries:
            raise ValueError(
                f"position must be below max_queries={self.max_queries}, got {position}; create "
                "the memory with a larger max_queries."
            )
        units = _units(self._plan, position).to(q.device)
        k, v = (self._runs(x, units, 2) for x in (self.keys, self.values))
        gain = self._runs(self._gain, units, 1)[:, None, None]
        alive = (gain > MASKED / 2).any(-1, keepdim=True)
        if bias is not None:
            gain = gain + self._bias(bias, units, position)
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        grouped = q.unflatten(1, (k.shape[1], -1))[:, :, :, 0].to(k.dtype)
        out = F.scaled_dot_product_attention(grouped, k, v, gain.to(k.dtype), scale=scale)
        return out.masked_fill(~alive, 0.0).flatten(1, 2)[:, :, None].to(q.dtype)

    def _runs(self, x: Tensor, units: Tensor, dim: int) -> Tensor:
        """The units of a joined dimension, side by side."""
        runs = x.unflatten(dim, (-1, self._plan.unit)).index_select(dim, units)
        return runs.flatten(dim, dim + 1)

    def _bias(self, bias: PyramidBias, units: Tensor, position: int) -> Tensor:
        """(1, kv_heads or 1, heads a group or 1, joined keys)."""
        keys = (
            units[:, None] * self._plan.unit + torch.arange(self._plan.unit, device="cpu")
        ).flatten()
        rows = bias.table[self._plan.bias_place(torch.tensor(position, device="cpu"), keys)].T
        return rows.unflatten(0, (self.keys.shape[1] if len(rows) > 1 else 1, -1))[None]


@remember(entries=64)
def _units(plan: _PyramidTiles, position: int) -> Tensor:
    """Joined units that a query reads. Cached because the layers of a model ask alike."""
    found = []
    for level in range(plan.levels):
        own = torch.tensor((position >> level) // plan.unit, device="cpu")
        near = own + torch.arange(-3, 4, device="cpu")
        near = near[(near >= 0) & (near < plan.key_units(level))]
        near = near[plan._meets_units(level, own, near)]
        found.append(near + plan.key_offsets[level] // plan.unit)
    return torch.cat(found)
