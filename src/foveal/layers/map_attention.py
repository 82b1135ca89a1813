"""MapAttention: every pixel of a map attends to all of them, with positions in two dimensions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foveal.common.arguments import checked
from foveal.layers.checks import check_dropout, check_sizes
from foveal.layers.relative_position import Size
from foveal.layers.rows import HERE, Rows
from foveal.layers.windows import fold
from foveal.ops.fused import fused_attention
from foveal.patterns import Full
from foveal.patterns.sizes import pair


class MapAttention(nn.Module):
    """Attention of a whole map, with logits of where a key stands relative to a query.

    Srinivas et al., "Bottleneck Transformers for Visual Recognition" (2021). The two tables of
    positions are those of a map of `size`; farther offsets, of larger maps, take the outermost
    entries, so that maps may have any size.

    Differs from the paper in: maps of sizes other than that of training.

    Args:
        dim: features of the map.
        size: (height, width) of the map in training, or an int.
        dim_head: features of a head of queries and keys.
        heads: number of heads.
        value_ratio: features of a head of values, as a multiple of dim_head.
        scale_rel_pos: scale position logits as the content logits are.
        qkv_bias: biases in the projections.
        dropout: on the attention weights.

    Raises:
        ValueError: sizes that are not positive.

    Example:
        >>> import torch
        >>> from foveal.layers.map_attention import MapAttention
        >>> layer = MapAttention(dim=32, size=8, dim_head=16, heads=2)
        >>> layer(torch.randn(1, 32, 7, 11)).shape
        torch.Size([1, 32, 7, 11])
    """

    rows: Rows = HERE

    @checked
    def __init__(
        self,
        dim: int,
        size: Size,
        dim_head: int = 64,
        heads: int = 8,
        *,
        value_ratio: float = 1.0,
        scale_rel_pos: bool = False,
        qkv_bias: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_sizes(dim=dim, dim_head=dim_head, heads=heads)
        check_dropout(dropout)
        self.size = pair(size, "size")
        self.dim, self.heads, self.dim_qk = dim, heads, dim_head
        self.dim_v = round(dim_head * value_ratio)
        check_sizes(dim_v=self.dim_v)
        self.scale, self.scale_rel_pos, self.dropout = dim_head**-0.5, scale_rel_pos, dropout
        self.to_q = nn.Linear(dim, heads * dim_head, bias=qkv_bias)
        self.to_kv = nn.Linear(dim, heads * (dim_head + self.dim_v), bias=qkv_bias)
        self.rel_height = nn.Parameter(torch.empty(2 * self.size[0] - 1, dim_head))
        self.rel_width = nn.Parameter(torch.empty(2 * self.size[1] - 1, dim_head))
        for table in (self.rel_height, self.rel_width):
            nn.init.normal_(table, std=self.scale)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, size={self.size}, heads={self.heads}"

    @property
    def pattern(self) -> Full:
        """Who attends to whom: all to all."""
        return Full()

    def forward(self, x: Tensor) -> Tensor:
        """(batch, dim, height, width) -> (batch, heads * dim_v, height, width)."""
        x = x.permute(0, 2, 3, 1)
        q = self.to_q(x).unflatten(-1, (self.heads, self.dim_qk))
        k, v = self.to_kv(x).split((self.heads * self.dim_qk, self.heads * self.dim_v), -1)
        bias = self._positions(q)
        k = self.rows.all(k, 1).unflatten(-1, (self.heads, self.dim_qk))
        v = self.rows.all(v, 1).unflatten(-1, (self.heads, self.dim_v))
        q, k, v = (fold(part, 1, 2).transpose(1, 2) for part in (q, k, v))
        dropout = self.dropout if self.training else 0.0
        out = fused_attention(q, k, v, bias, dropout, scale=self.scale)
        out = fold(out.transpose(1, 2), 2, 3).unflatten(1, x.shape[1:3])
        return out.permute(0, 3, 1, 2)

    def _positions(self, q: Tensor) -> Tensor:
        """q (batch, height, width, heads, dim) -> logits (batch, heads, pixels, all pixels)."""
        down = _entries(self.rel_height, self.rows.count(q.shape[1]))
        down = self.rows.own(down, 0, q.shape[1])
        rows = torch.einsum("byxnd,yad->bnyxa", q, down)
        columns = torch.einsum("byxnd,xcd->bnyxc", q, _entries(self.rel_width, q.shape[2]))
        logits = rows[..., :, None] + columns[..., None, :]
        logits = fold(fold(logits, 4, 5), 2, 3)
        return logits * self.scale if self.scale_rel_pos else logits


def _entries(table: Tensor, length: int) -> Tensor:
    """For each query and key along an axis their entry of a table: (length, length, dim)."""
    at = torch.arange(length, device=table.device)
    middle = len(table) // 2
    return table[(at - at[:, None] + middle).clamp(0, len(table) - 1)]
