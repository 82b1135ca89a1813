"""impl="tiled": tiles of queries and the blocks they name, in plain PyTorch on any device.

Chunks of tiles gather their blocks; the backward pass computes the weights of each chunk again, so
memory is that of the inputs and of a chunk.

Legend of shapes: B batch, G key/value heads, R query heads per key/value head, T tiles of a head,
D features; in a chunk: t tiles of any heads, q queries of a tile, c blocks of a tile, k = c times
the size of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from foveal.ops.bias import MASKED
from foveal.ops.operator import new_output
from foveal.ops.selected.operands import Operands, in_order
from foveal.ops.tiled import CHUNK


def forward(x: Operands) -> tuple[Tensor, Tensor]:
    """out (B, H, N, D), laid out by `new_output`, and lse (B, H, N)."""
    x.check_blocks()
    out, lse = _attend(_Call(x))
    return new_output(x.q, x.v.shape[-1]).copy_(out), lse.contiguous()


def attend_plainly(x: Operands) -> tuple[Tensor, Tensor]:
    """The same in operations of which torch knows every derivative."""
    return _attend(_Call(x, ask=False))


def _attend(call: _Call) -> tuple[Tensor, Tensor]:
    x, parts = call.x, []
    for chunk in call.chunks():
        weights, lse, _ = call.weigh(chunk)
        parts.append((weights @ chunk.v, lse))
    if not parts:
        rows = x.repeats * x.query_block
        # a sum of nothing, so that a call without queries has its derivatives too
        zero = torch.stack([part[..., :0].sum() for part in (call.q, call.k, call.v)]).sum()
        parts = [(zero.expand(0, rows, x.v.shape[-1]), zero.expand(0, rows))]
    outs, lses = (torch.cat(part) for part in zip(*parts, strict=True))
    return call.by_head(outs).to(x.q.dtype), call.by_head(lses[..., None])[..., 0]


def backward(
    x: Operands, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor
) -> list[Tensor]:
    """Gradients of q, k and v, laid out by `new_output`; tensors as in `forward`."""
    call = _Call(x)
    d_outs = call.by_tile(grad_out)
    deltas = (d_outs * call.by_tile(out)).sum(-1) - call.by_tile(grad_lse[..., None])[..., 0]
    d_q, d_k, d_v = (part.new_zeros(part.shape, dtype=x.sums) for part in (call.q, call.k, call.v))
    for chunk in call.chunks():
        weights, _, slope = call.weigh(chunk)
        d_out = d_outs[chunk.tiles]
        _add_blocks(d_v, chunk.blocks, weights.mT @ d_out)
        d_logits = (d_out @ chunk.v.mT).sub_(deltas[chunk.tiles, :, None]).mul_(weights)
        if slope is not None:
            d_logits *= slope
        _add_blocks(d_k, chunk.blocks, d_logits.mT @ call.q[chunk.tiles])
        torch.bmm(d_logits, chunk.k, out=d_q[chunk.tiles])
    grads = [new_output(part, part.shape[-1]) for part in x[:3]]
    grads[0].copy_(call.by_head(d_q.mul_(x.scale)))
    for grad, blocks in zip(grads[1:], (d_k, d_v), strict=True):
        tokens = blocks.view(*grad.shape[:2], x.num_blocks * x.block_size, grad.shape[-1])
        grad.copy_(tokens[:, :, : grad.shape[2]])
    return grads


class _Chunk(NamedTuple):
    """Some tiles."""

    tiles: slice
    blocks: Tensor  # (t c) among those of all heads
    k: Tensor  # (t, k, D), finite where no query of the tile reads
    v: Tensor
    allowed: Tensor  # (t, 1, q, k)


class _Call:
    """q (B G T, R q, D) times the scale, k and v (B G blocks, size, D)."""

    def __init__(self, x: Operands, ask: bool = True) -> None:
        self.x = x
        # what a GPU, or a transform, holds is not looked at
        self.ask = ask and x.q.device.type == "cpu"
        self.q = self.by_tile(x.q) * x.scale
        self.k, self.v = self._by_block(x.k), self._by_block(x.v)
        # zero times NaN, or infinity, of what a tile does not read would be NaN
        self.clean = self.ask and all(bool(part.sum().isfinite()) for part in (x.k, x.v))
        self.blocks = in_order(x).flatten(0, 2)
        self.key_mask = None
        if x.key_mask is not None:
            self.key_mask = pad(x.key_mask, (0, self._beyond)).unflatten(1, (-1, x.block_size))

    @property
    def _beyond(self) -> int:
        return self.x.num_blocks * self.x.block_size - self.x.k.shape[2]

    def by_tile(self, y: Tensor) -> Tensor:
        """(B, H, N, D) -> (B G T, R q, D), zeros beyond the queries, in the precision of sums."""
        x = self.x
        y = pad(y.to(x.sums), (0, 0, 0, x.num_tiles * x.query_block - x.q.shape[2]))
        y = y.unflatten(2, (x.num_tiles, x.query_block)).unflatten(1, (x.k.shape[1], x.repeats))
        return y.transpose(2, 3).flatten(3, 4).flatten(0, 2)

    def by_head(self, y: Tensor) -> Tensor:
        """The reverse of `by_tile`."""
        x = self.x
        y = y.unflatten(0, (*x.k.shape[:2], x.num_tiles)).unflatten(3, (x.repeats, x.query_block))
        return y.transpose(2, 3).flatten(3, 4).flatten(1, 2)[:, :, : x.q.shape[2]]

    def _by_block(self, y: Tensor) -> Tensor:
        """(B, G, M, D) -> (B G blocks, size, D)"""
        y = pad(y, (0, 0, 0, self._beyond)) if self._beyond else y
        return y.unflatten(2, (self.x.num_blocks, self.x.block_size)).flatten(0, 2)

    def chunks(self) -> Iterator[_Chunk]:
        x = self.x
        most = x.blocks.shape[3] * x.block_size
        row = most * (x.repeats * x.query_block + x.k.shape[3] + x.v.shape[3])
        size = max(1, CHUNK.get(x.q.device.type, 1 << 26) // x.sums.itemsize // max(1, row))
        for first in range(0, len(self.blocks) if most and x.k.shape[2] else 0, size):
            yield self._chunk(slice(first, min(first + size, len(self.blocks))))
        if len(self.blocks) and not (most and x.k.shape[2]):
            yield self._nothing()

    def _chunk(self, tiles: slice) -> _Chunk:
        x = self.x
        blocks = self.blocks[tiles]
        if self.ask:
            most = int((blocks < x.num_blocks).sum(-1).amax())
            blocks = blocks[:, : max(1, most)]
        real = blocks < x.num_blocks
        blocks = blocks.masked_fill(~real, 0)
        tile = torch.arange(tiles.start, tiles.stop, device=blocks.device)
        unit = (tile // x.num_tiles)[:, None]
        flat = (unit * x.num_blocks + blocks).flatten()
        allowed = self._allowed(blocks, real, tile, unit)
        k, v = (
            part.index_select(0, flat).view(len(tile), -1, part.shape[-1]).to(x.sums)
            for part in (self.k, self.v)
        )
        if not self.clean:
            unread = ~allowed.any(2)[:, 0, :, None]
            k, v = k.masked_fill(unread, 0.0), v.masked_fill(unread, 0.0)
        return _Chunk(tiles, flat, k, v, allowed)

    def _allowed(self, blocks: Tensor, real: Tensor, tile: Tensor, unit: Tensor) -> Tensor:
        """Which pairs there are: (t, 1, q, k)."""
        x = self.x
        within = torch.arange(x.block_size, device=blocks.device)
        token = blocks[..., None] * x.block_size + within  # (t, c, size)
        there = real[..., None] & (token < x.k.shape[2])
        if self.key_mask is not None:
            there = there & self.key_mask[unit // x.k.shape[1], blocks]
        there = there.flatten(1)[:, None, None]
        if not x.causal:
            return there.expand(-1, 1, x.query_block, -1)
        start = x.first + tile % x.num_tiles * x.query_block
        at = start[:, None] + torch.arange(x.query_block, device=blocks.device)
        return there & (token.flatten(1)[:, None, None] <= at[:, None, :, None])

    def _nothing(self) -> _Chunk:
        """All tiles, where there is no block."""
        x, tiles = self.x, len(self.blocks)
        k, v = (self.q.new_zeros(tiles, 0, part.shape[-1]) for part in (x.k, x.v))
        allowed = self.blocks.new_zeros(tiles, 1, x.query_block, 0, dtype=torch.bool)
        return _Chunk(slice(0, tiles), self.blocks.new_zeros(0), k, v, allowed)

    def weigh(self, chunk: _Chunk) -> tuple[Tensor, Tensor, Tensor | None]:
        """Weights (t, R q, k), lse (t, R q), and what a soft-cap makes of a slope."""
        x = self.x
        logits, slope = self.q[chunk.tiles] @ chunk.k.mT, None
        if not chunk.k.shape[1]:
            return logits, logits.sum(-1) - torch.inf, None
        if x.softcap:
            bent = torch.tanh(logits / x.softcap)
            logits, slope = x.softcap * bent, 1 - bent * bent
        shape = (x.repeats, x.query_block)
        logits = logits.unflatten(1, shape).masked_fill(~chunk.allowed, MASKED).flatten(1, 2)
        dead = ~chunk.allowed.any(-1).expand(-1, *shape).flatten(1, 2)
        weights = torch.softmax(logits, -1)
        # two maxima give the log-sum-exp: the largest weight is exp(largest logit - lse)
        lse = logits.amax(-1) - weights.amax(-1).log()
        return weights.masked_fill(dead[..., None], 0.0), lse.masked_fill(dead, -torch.inf), slope


def _add_blocks(to: Tensor, blocks: Tensor, values: Tensor) -> None:
    """values (t, k, D) into the blocks of to (B G blocks, size, D), in a fixed order."""
    if not blocks.numel():
        return
    rows, flat = values.reshape(len(blocks), -1).to(to.dtype), to.view(len(to), -1)
    if to.device.type == "cuda":  # whose index_add_ meets in any order
        flat.index_put_((blocks,), rows, accumulate=True)
    else:
        flat.index_add_(0, blocks, rows)
