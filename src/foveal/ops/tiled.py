"""impl="tiled": exact attention over a tile plan in plain PyTorch.

Chunks of tiles that fit in cache pass through a few reused buffers. The backward pass recomputes
the weights of each chunk from the saved log-sum-exp (Dao et al., "FlashAttention", 2022), so
memory is that of the inputs and outputs. All sums run in a fixed order: results are reproducible.

Legend of shapes: B batch, G key/value heads, R query heads per key/value head, N queries,
M keys, D head_dim, V head_dim of v; inside a chunk: g heads, t tiles, q queries and k keys a tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from foveal.ops.places import (
    Scratch,
    add_keys,
    gather,
    matrices,
    narrow_places,
    outer_count,
    scatter,
    take_keys,
    tile_values,
)
from foveal.patterns.tiling import Places, TileGroup, Tiling

MASKED = -1e30
"""Logit of a masked pair: its weight is exactly zero, and sums with it stay finite."""

CHUNK = {"cpu": 1 << 19, "cuda": 1 << 26}
"""Scores in one chunk: half of a core's cache on CPU; enough to fill the device on CUDA."""


@dataclass(frozen=True)
class Chunk:
    """Some tiles of some heads of one sequence of the batch."""

    batch: int
    heads: slice  # of key/value heads
    group: TileGroup
    queries: Places
    keys: tuple[Places, ...]
    mask: Tensor | None  # (1 or t, q, k) added to the logits


@dataclass
class Inputs:
    """One call: q (B, G, R, N, D), k (B, G, M, D), v (B, G, M, V), and what shapes the logits."""

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None  # (B or 1, H or 1, N or 1, M or 1)
    key_bias: Tensor | None  # (B, M), 0 or MASKED
    scale: float
    dropout_p: float
    seed: int

    def __post_init__(self) -> None:
        half = self.q.dtype in (torch.float16, torch.bfloat16)
        self.dtype = torch.float32 if half else self.q.dtype
        self.scratch = Scratch(self.dtype, self.q.device)
        self.noise = torch.Generator(self.q.device)
        self.noise.manual_seed(self.seed)

    @property
    def repeats(self) -> int:
        return self.q.shape[2]

    def chunks(self, tiling: Tiling) -> Iterator[Chunk]:
        """All chunks of the call, always in the same order."""
        budget = CHUNK.get(self.q.device.type, 1 << 24)
        heads = self.k.shape[1]
        for group in tiling.groups:
            mask = self._additive(group.mask)
            count = outer_count(group)
            row = group.num_tiles // count * self.repeats * group.tile_q * group.tile_k
            num_tiles = max(1, min(count, budget // row))
            num_heads = max(1, min(heads, budget // (row * num_tiles)))
            for batch in range(self.k.shape[0]):
                for h in range(0, heads, num_heads):
                    for t in range(0, count, num_tiles):
                        size = min(num_tiles, count - t)
                        yield Chunk(
                            batch,
                            slice(h, min(h + num_heads, heads)),
                            group,
                            narrow_places(group.queries, t, size),
                            tuple(narrow_places(part, t, size) for part in group.keys),
                            mask if mask is None or len(mask) == 1 else mask[t : t + size],
                        )

    def _additive(self, mask: Tensor | None) -> Tensor | None:
        if mask is None:
            return None
        return (~mask).to(self.q.device, self.dtype) * MASKED

    def may_be_empty(self, chunk: Chunk) -> bool:
        """Whether a query of the chunk may have no key."""
        given = self.bias is not None or self.key_bias is not None
        return given or not chunk.group.every_query_reads

    # -- parts of a chunk -------------------------------------------------------------------

    def queries(self, name: str, x: Tensor, chunk: Chunk) -> Tensor:
        """x (B, G, R, N, E) -> copy (g, t, R q, E)."""
        g, part = chunk.heads.stop - chunk.heads.start, chunk.queries
        out = self.scratch.get(
            name, g, part.num_tiles, self.repeats, part.num_items, x.shape[-1]
        )
        for r in range(self.repeats):
            gather(x[chunk.batch, chunk.heads, r], part, out[:, :, r])
        return out.flatten(2, 3)

    def write_queries(self, x: Tensor, chunk: Chunk, values: Tensor) -> None:
        """values (g, t, R q, E) -> their places in x (B, G, R, N, E)."""
        parts = values.unflatten(2, (self.repeats, chunk.queries.num_items))
        for r in range(self.repeats):
            scatter(x[chunk.batch, chunk.heads, r], chunk.queries, parts[:, :, r])

    def keys(self, name: str, x: Tensor, chunk: Chunk) -> Tensor:
        """x (B, G, M, E) -> (g, t, k, E): in place where the tiles are plain matrices."""
        x = x[chunk.batch, chunk.heads]
        if len(chunk.keys) == 1 and x.dtype == self.dtype:
            in_place = matrices(x, chunk.keys[0])
            if in_place is not None:
                return in_place
        tiles, items = chunk.queries.num_tiles, chunk.group.tile_k
        out = self.scratch.get(name, x.shape[0], tiles, items, x.shape[-1])
        take_keys(x, chunk.keys, out)
        return out

    def logits(self, chunk: Chunk, q: Tensor, k: Tensor) -> Tensor:
        """q (g, t, R q, D) scaled, k (g, t, k, D) -> logits (g, t, R q, k)."""
        scores = self.scratch.get("scores", *q.shape[:3], k.shape[2])
        batched_matmul(q, k.mT, scores)
        shaped = scores.unflatten(2, (self.repeats, chunk.queries.num_items))
        if self.bias is not None:
            shaped += self._bias(chunk, self.bias)
        if chunk.mask is not None:
            shaped += chunk.mask[:, None]
        if self.key_bias is not None:
            row = self.key_bias[chunk.batch]
            parts = [tile_values(row, part) for part in chunk.keys]
            shaped += torch.cat(parts, 1)[:, None, None, :]
        return scores

    def _bias(self, chunk: Chunk, bias: Tensor) -> Tensor:
        values = bias[self._bias_index(chunk, bias)].clamp(min=MASKED)
        heads = values.shape[0]
        if heads == 1:
            return values[:, :, None]
        return values.unflatten(0, (-1, self.repeats)).transpose(1, 2)

    def _bias_index(self, chunk: Chunk, bias: Tensor) -> tuple[Tensor, ...]:
        """Indices of the chunk's pairs: shapes broadcast to (heads, t, q, k)."""
        device = bias.device
        first, last = chunk.heads.start * self.repeats, chunk.heads.stop * self.repeats
        heads = torch.arange(first, last) if bias.shape[1] > 1 else torch.zeros(1, dtype=torch.long)
        q = chunk.queries.index()[None, :, :, None] * (bias.shape[2] > 1)
        k = torch.cat([part.index() for part in chunk.keys], 1)[None, :, None, :]
        batch = torch.tensor(chunk.batch if bias.shape[0] > 1 else 0)
        index = (batch, heads[:, None, None, None], q, k * (bias.shape[3] > 1))
        return tuple(part.to(device) for part in index)

    def drop(self, weights: Tensor) -> Tensor | None:
        """Dropout factors, 0 or 1 / (1 - p), of a chunk's weights."""
        if not self.dropout_p:
            return None
        keep = self.scratch.get("drop", *weights.shape)
        keep.bernoulli_(1 - self.dropout_p, generator=self.noise)
        return keep.div_(1 - self.dropout_p)

    def add_bias_grad(self, grad: Tensor, chunk: Chunk, grad_scores: Tensor) -> None:
        """Sum the gradient of the chunk's logits into that of the bias."""
        assert self.bias is not None
        index = self._bias_index(chunk, self.bias)
        values = grad_scores.unflatten(2, (self.repeats, -1)).transpose(1, 2).flatten(0, 1)
        if self.bias.shape[1] == 1:
            values = values.sum(0, keepdim=True)
        grad.index_put_(
            tuple(part.expand(values.shape) for part in index), values.to(grad.dtype), True
        )


def batched_matmul(a: Tensor, b: Tensor, out: Tensor) -> None:
    """out = a @ b over (g, t) matrices, without a copy of overlapping ones."""
    if all(x.is_contiguous() or x.mT.is_contiguous() for x in (a, b)):
        torch.bmm(a.flatten(0, 1), b.flatten(0, 1), out=out.flatten(0, 1))
        return
    for head in range(a.shape[0]):
        torch.bmm(a[head], b[head], out=out[head])


def forward(inputs: Inputs, tiling: Tiling) -> tuple[Tensor, Tensor]:
    """Returns out (B, G, R, N, V) and lse (B, G, R, N)."""
    q, v = inputs.q, inputs.v
    shape = q.shape[:-1]
    out = q.new_empty if tiling.covers_all else q.new_zeros
    out = out((*shape, v.shape[-1]))
    lse = torch.full(shape, -torch.inf, dtype=inputs.dtype, device=q.device)
    for chunk in inputs.chunks(tiling):
        q_tile = inputs.queries("q", q, chunk).mul_(inputs.scale)
        scores = inputs.logits(chunk, q_tile, inputs.keys("k", inputs.k, chunk))
        weights, chunk_lse = _softmax(inputs, chunk, scores)
        keep = inputs.drop(weights)
        if keep is not None:
            weights *= keep
        result = inputs.scratch.get("out", *q_tile.shape[:3], v.shape[-1])
        batched_matmul(weights, inputs.keys("v", inputs.v, chunk), result)
        inputs.write_queries(out, chunk, result)
        inputs.write_queries(lse[..., None], chunk, chunk_lse[..., None])
    return out, lse


def _softmax(inputs: Inputs, chunk: Chunk, scores: Tensor) -> tuple[Tensor, Tensor]:
    """scores (g, t, R q, k) -> weights, and their log-sum-exp (g, t, R q).

    Two maxima give the log-sum-exp: the largest weight is exp(largest logit - lse).
    """
    weights = inputs.scratch.get("weights", *scores.shape)
    torch.softmax(scores, -1, out=weights)
    top = scores.amax(-1)
    lse = top - weights.amax(-1).log_()
    if inputs.may_be_empty(chunk):
        empty = top <= MASKED / 2
        lse.masked_fill_(empty, -torch.inf)
        weights.mul_(~empty[..., None])
    return weights, lse


@dataclass
class Gradients:
    """Sums being built: as the inputs, in the precision of the arithmetic."""

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None


def backward(
    inputs: Inputs, tiling: Tiling, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor
) -> Gradients:
    """Gradients of q, k, v and bias; out, lse and their gradients as `forward` returns them."""
    dtype = inputs.dtype
    bias = inputs.bias
    grads = Gradients(
        torch.zeros_like(inputs.q, dtype=dtype, memory_format=torch.contiguous_format),
        torch.zeros_like(inputs.k, dtype=dtype, memory_format=torch.contiguous_format),
        torch.zeros_like(inputs.v, dtype=dtype, memory_format=torch.contiguous_format),
        None if bias is None else torch.zeros(bias.shape, dtype=dtype, device=bias.device),
    )
    delta = (out * grad_out).sum(-1, dtype=dtype) - grad_lse
    lse = lse.masked_fill(lse == -torch.inf, torch.inf)  # weights of empty rows become zero
    for chunk in inputs.chunks(tiling):
        _chunk_backward(inputs, chunk, lse, delta, grad_out, grads)
    return grads


def _chunk_backward(
    inputs: Inputs, chunk: Chunk, lse: Tensor, delta: Tensor, grad_out: Tensor, grads: Gradients
) -> None:
    q = inputs.queries("q", inputs.q, chunk).mul_(inputs.scale)
    k = inputs.keys("k", inputs.k, chunk)
    v = inputs.keys("v", inputs.v, chunk)
    d_out = inputs.queries("d_out", grad_out, chunk)
    weights = inputs.logits(chunk, q, k)
    weights -= inputs.queries("lse", lse[..., None], chunk)
    weights.exp_()
    keep = inputs.drop(weights)
    dropped = weights if keep is None else weights * keep

    d_v = inputs.scratch.get("d_keys", *v.shape)
    batched_matmul(dropped.mT, d_out, d_v)
    _add(grads.v, chunk, d_v)

    d_scores = inputs.scratch.get("weights", *weights.shape)
    batched_matmul(d_out, v.mT, d_scores)
    if keep is not None:
        d_scores *= keep
    d_scores -= inputs.queries("delta", delta[..., None], chunk)
    d_scores *= weights
    if grads.bias is not None:
        inputs.add_bias_grad(grads.bias, chunk, d_scores)

    d_k = inputs.scratch.get("d_keys", *k.shape)
    batched_matmul(d_scores.mT, q, d_k)
    _add(grads.k, chunk, d_k)
    d_q = inputs.scratch.get("d_q", *q.shape)
    batched_matmul(d_scores, k, d_q)
    inputs.write_queries(grads.q, chunk, d_q.mul_(inputs.scale))


def _add(grad: Tensor, chunk: Chunk, values: Tensor) -> None:
    add_keys(grad[chunk.batch, chunk.heads], chunk.keys, values)
