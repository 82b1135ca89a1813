"""Halo attention over windows that are copied out: for sizes that are symbols while exporting.

The plan of a pattern needs numbers. `torch.export` with a dynamic height or width has none, so
HaloAttention then takes this route: the same mathematics in plain tensor operations.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from foveal.layers.windows import Pair, fold, from_windows, to_windows
from foveal.ops.fused import fused_attention


def windowed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: Tensor,
    columns: Tensor,
    *,
    block: Pair,
    halo: Pair,
    stride: int,
    read_padding: bool,
    scale: float,
    dropout_p: float,
) -> Tensor:
    """Attention of blocks to their windows.

    Args:
        q: (batch, query height, query width, heads, head_dim).
        k, v: (batch, height, width, heads, head_dim or head_dim_v).
        rows, columns: (batch, heads, queries, window height or width), as in WindowBias.
        block, halo: (height, width) in pixels.
        stride: pixels from one query to the next.
        read_padding: pixels beyond the map are keys with k = v = 0, rather than absent.

    Returns:
        (batch, query height, query width, heads, head_dim_v).
    """
    size = (q.shape[1], q.shape[2])
    inner = (block[0] // stride, block[1] // stride)
    bias = rows.unflatten(2, size)[..., :, None] + columns.unflatten(2, size)[..., None, :]
    q_blocks = to_windows(q, inner)  # (batch, nh, nw, pixels, heads, head_dim)
    bias = to_windows(fold(bias, 4, 5).permute(0, 2, 3, 1, 4), inner).transpose(3, 4)
    counts = (q_blocks.shape[1], q_blocks.shape[2])
    places = [_places(counts[a], block[a], halo[a], k.device) for a in (0, 1)]
    if not read_padding:
        down, across = (
            (at >= halo[a]) & (at < halo[a] + k.shape[1 + a]) for a, at in enumerate(places)
        )
        real = (down[:, None, :, None] & across[:, None]).flatten(2)  # (nh, nw, window pixels)
        bias = bias.masked_fill(~real[:, :, None, None], -torch.inf)
    k, v = (_windows(x, places, block, halo) for x in (k, v))
    q, k, v, bias = (fold(x, 0, 2) for x in (q_blocks, k, v, bias))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = fused_attention(
        q,
        k,
        v,
        attn_mask=bias.to(q.dtype),
        dropout_p=dropout_p,
        scale=scale,
    )
    return from_windows(out.transpose(1, 2).unflatten(0, (-1, *counts)), inner, size)


def _places(count: int, block: int, halo: int, device: torch.device) -> Tensor:
    """What each window reads along an axis, counted from the halo before the first: (n, window)"""
    first = torch.arange(count, device=device) * block
    return first[:, None] + torch.arange(block + 2 * halo, device=device)


def _windows(x: Tensor, places: list[Tensor], block: Pair, halo: Pair) -> Tensor:
    """(batch, height, width, ...) -> (batch, nh, nw, window pixels, ...), zeros outside."""
    for axis, at in enumerate(places):
        after = at.shape[0] * block[axis] - x.shape[1 + 2 * axis] + halo[axis]
        x = pad(x, [0, 0] * (x.ndim - 2 - 2 * axis) + [halo[axis], after])
        x = x.index_select(1 + 2 * axis, at.flatten()).unflatten(1 + 2 * axis, at.shape)
    return fold(x.transpose(2, 3), 3, 4)
