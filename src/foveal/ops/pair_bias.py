"""What the pairs of a chunk of tiles gain, by a tensor or a table, and its gradient.

Legend of shapes: see `foveal.ops.tiled`; the bias is (B or 1, H or 1, N or 1, M or 1), or a table
(1, H or 1, 1, rows) that the pattern's `bias_place` reads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from foveal.ops.bias import bounded
from foveal.patterns.tabled import Tabled, are_alike


def bias_of_pairs(inputs: Any, chunk: Any, bias: Tensor) -> Tensor:
    """The bias of the chunk's pairs: broadcasts to (b, g, t, R, q, k)."""
    values = bounded(bias[_index(inputs, chunk, bias)])
    repeats = inputs.repeats if values.shape[1] > 1 else 1
    return values.unflatten(1, (-1, repeats)).transpose(2, 3)


def add_bias_grad(inputs: Any, grad: Tensor, chunk: Any, grad_scores: Tensor) -> None:
    """Sum the gradient of the chunk's logits (b, g, t, R q, k) into that of the bias."""
    index = _index(inputs, chunk, grad)
    values = grad_scores.unflatten(3, (inputs.repeats, -1)).transpose(2, 3).flatten(1, 2)
    alike = _tiles_alike(inputs, chunk)
    for dim, one in enumerate((grad.shape[0] == 1, grad.shape[1] == 1, alike)):
        if one:
            values = values.sum(dim, keepdim=True)
    values = values.to(grad.dtype)
    grad.index_put_(tuple(part.expand(values.shape) for part in index), values, True)


def _index(inputs: Any, chunk: Any, bias: Tensor) -> tuple[Tensor, ...]:
    """Indices of the chunk's pairs: shapes broadcast to (b, heads, t or 1, q, k)."""

    def every(dim: int, part: slice) -> Tensor:
        start, stop = (part.start, part.stop) if bias.shape[dim] > 1 else (0, 1)
        return torch.arange(start, stop, device="cpu")

    all_heads = slice(chunk.heads.start * inputs.repeats, chunk.heads.stop * inputs.repeats)
    batch = every(0, chunk.batch)[:, None, None, None, None]
    heads = every(1, all_heads)[:, None, None, None]
    q = chunk.queries.index()[:, :, None]
    k = torch.cat([part.index() for part in chunk.keys], 1)[:, None, :]
    if inputs.pattern.biased_by_table:
        if _tiles_alike(inputs, chunk):
            q, k = q[:1], k[:1]
        q, k = torch.zeros_like(q), inputs.pattern.bias_place(q, k)
    else:
        q, k = q * (bias.shape[2] > 1), k * (bias.shape[3] > 1)
    return tuple(part.to(bias.device) for part in (batch, heads, q, k))


def _tiles_alike(inputs: Any, chunk: Any) -> bool:
    """Whether all tiles of the chunk's group pick the same rows of a table."""
    pattern, sizes = inputs.pattern, (inputs.q.shape[3], inputs.k.shape[2])
    return isinstance(pattern, Tabled) and are_alike(pattern, chunk.group, *sizes)
