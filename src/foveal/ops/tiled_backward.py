"""The backward pass of impl="tiled": weights of each chunk again, and products of gradients.

Legend of shapes as in tiled.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveal.ops.bias import WindowBias
from foveal.ops.pair_bias import add_bias_grad
from foveal.ops.places import add_keys, batched_matmul, row_products
from foveal.ops.tiled import Chunk, Inputs, softmax_of


@dataclass
class Gradients:
    """Gradients being built, shaped as the inputs.

    In memory the heads of a token lie side by side, as projections want them. Keys and values sum
    over tiles, in the precision of sums; a query stands in one tile.

    Attributes:
        q: (B, G, R, N, D).
        k, v: (B, G, M, D or V).
        bias: (B or 1, H or 1, N or 1, M or 1), or a table (1, H or 1, 1, rows).
        window: rows and columns (B, G, R, N, window).
    """

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None
    window: WindowBias | None

    @classmethod
    def zeros(cls, inputs: Inputs) -> Gradients:
        def zero(x: Tensor, dtype: torch.dtype = inputs.sums) -> Tensor:
            batch, *heads, tokens, dim = x.shape
            new = torch.zeros(batch, tokens, *heads, dim, dtype=dtype, device=x.device)
            return new.movedim(1, -2)

        return cls(
            zero(inputs.q, inputs.q.dtype),
            zero(inputs.k),
            zero(inputs.v),
            # not as the bias lies in memory, which may be transposed: graphs expect rows
            None if inputs.bias is None else inputs.bias.new_zeros(inputs.bias.shape),
            None if inputs.window is None else WindowBias(*(zero(x) for x in inputs.window)),
        )


def backward(inputs: Inputs, out: Tensor, grad_out: Tensor, grad_lse: Tensor) -> Gradients:
    """Gradients of the inputs; out and the gradients of out and lse shaped as in `forward`."""
    grads = Gradients.zeros(inputs)
    delta = row_products(out, grad_out, inputs.sums) - grad_lse
    for chunk in inputs.chunks():
        _chunk_backward(inputs, chunk, delta, grad_out, grads)
    return grads


def _chunk_backward(
    inputs: Inputs, chunk: Chunk, delta: Tensor, grad_out: Tensor, grads: Gradients
) -> None:
    q = inputs.scaled_queries(chunk)
    k = inputs.biased_keys(chunk)
    d_out = inputs.queries("d_out", chunk, grad_out)
    bend = None
    if inputs.softcap:
        bend = inputs.scratch.get("bend", *q.shape[:4], chunk.group.tile_k)
    # a tile holds all keys of its queries; exp(scores - lse) is slow on CPU where pairs are masked
    padded, lse = softmax_of(inputs, chunk, inputs.logits(chunk, q, k, bend), need_lse=False)
    if lse is not None:  # zero times a query that is NaN would be NaN
        dead = (lse == -torch.inf)[..., None]
        q.masked_fill_(dead, 0.0)
        if bend is not None:
            bend.masked_fill_(dead, 0.0)
    keep = inputs.drop(chunk, padded)
    weights = padded[..., : chunk.group.tile_k]
    keep = None if keep is None else keep[..., : chunk.group.tile_k]

    v = inputs.keys("v", inputs.v, chunk)
    d_v = inputs.scratch.get("d_keys", *v.shape)
    batched_matmul((weights if keep is None else weights * keep).mT, d_out, d_v)
    add_keys(grads.v[chunk.batch, chunk.heads], chunk.keys, d_v)

    d_scores = inputs.scratch.get("d_scores", *padded.shape)[..., : chunk.group.tile_k]
    batched_matmul(d_out, v.mT, d_scores)
    if keep is not None:
        d_scores *= keep
    d_scores -= inputs.per_query(delta, chunk).to(inputs.dtype)
    d_scores *= weights
    if grads.bias is not None:
        add_bias_grad(inputs, grads.bias, chunk, d_scores)

    d_q, dim = inputs.scratch.get("d_q", *q.shape), inputs.head_dim
    if bend is None:
        batched_matmul(d_scores, k, d_q)
    else:
        if inputs.window is not None:
            batched_matmul(d_scores, k[..., dim:], d_q[..., dim:])
        d_scores *= bend
        batched_matmul(d_scores, k[..., :dim], d_q[..., :dim])
    d_k = inputs.scratch.get("d_keys", *k.shape[:4], dim)
    batched_matmul(d_scores.mT, q[..., :dim], d_k)
    add_keys(grads.k[chunk.batch, chunk.heads], chunk.keys, d_k)
    _write_query_grads(inputs, chunk, d_q, grads)


def _write_query_grads(inputs: Inputs, chunk: Chunk, d_q: Tensor, grads: Gradients) -> None:
    """d_q (b, g, t, R q, E) holds the gradient of the queries, then that of the window bias."""
    own, *rest = d_q.split([inputs.head_dim, *(x.shape[-1] for x in inputs.window or ())], -1)
    inputs.write_queries(grads.q, chunk, own.mul_(inputs.scale))
    for grad, part in zip(grads.window or (), rest, strict=True):
        inputs.write_queries(grad, chunk, part)
