"""Many tokens at once over a PyramidCache."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.ops.bias import TableBias
from foveal.ops.logits import capped
from foveal.ops.pooling import pairs
from foveal.patterns.pyramid_tiles import _PyramidTiles

PIECE = 128
"""Tokens that are scored against the rings and each other at one time."""


def extend(
    cache: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    bias: TableBias | None,
    sinks: Tensor | None,
    softcap: float | None,
) -> Tensor:
    """Load tokens, and attention of each over the clusters that it reads.

    Args:
        cache: a PyramidCache, whose file imports this one.
        q: (batch, heads, tokens, head_dim).
        k, v: (batch, kv_heads, tokens, head_dim).
        sinks: (heads,) or None.

    Returns:
        (batch, heads, tokens, head_dim)
    """
    kv, outs, first = torch.stack((k, v)).to(cache.data.dtype), [], 0
    while first < q.shape[2]:
        if cache.position >= cache.ring << (cache.levels - 1):
            cache.add_level()
        room = (cache.ring << (cache.levels - 1)) - cache.position  # until there is another level
        part = slice(first, min(first + min(PIECE, room), q.shape[2]))
        own = q[:, :, part].to(kv.dtype)
        outs.append(_piece(cache, own, kv[:, :, :, part], scale, bias, sinks, softcap))
        first = part.stop
    return torch.cat(outs, 2).to(q.dtype)


def _piece(
    cache: Any,
    q: Tensor,
    kv: Tensor,
    scale: float,
    bias: TableBias | None,
    sinks: Tensor | None,
    softcap: float | None,
) -> Tensor:
    """A few tokens, that need no new level: q (batch, heads, n, dim), kv (2, batch, g, n, dim)."""
    levels = range(cache.levels)
    new = _completed(cache, kv)
    numbers = [_numbers(cache, level, new[level].shape[3]) for level in levels]
    own = torch.arange(cache.position, cache.position + q.shape[2], device="cpu")
    parts = [
        torch.cat((_held(cache, level, new[level].shape[3], numbers[level]), new[level]), 3)
        for level in levels
    ]
    added = torch.cat([_added(cache, one, own, numbers[one], q, bias) for one in levels], -1)
    k, v = torch.cat(parts, 3)
    group = k.shape[1], q.shape[1] // k.shape[1]
    if cache.pattern.queries == "coarse":
        queries = [_queries(cache, level, own, q).unflatten(1, group) for level in levels]
        products = [x @ part[0][:, :, None].mT for x, part in zip(queries, parts, strict=True)]
        out = _weigh(torch.cat(products, -1) * scale, added, v, sinks, softcap)
    elif sinks is not None or softcap is not None:
        products = q.unflatten(1, group) @ k[:, :, None].mT * scale
        out = _weigh(products, added, v, sinks, softcap)
    else:
        rows = q.unflatten(1, group).flatten(2, 3)
        mask = added.expand(-1, *group, -1, -1).flatten(2, 3).to(k.dtype)
        mask = mask.expand(len(q), -1, -1, -1)
        out = F.scaled_dot_product_attention(rows, k, v, mask, scale=scale).unflatten(
            2, (group[1], -1)
        )
    _store(cache, new, own, q)
    return out.flatten(1, 2)


def _weigh(
    scores: Tensor, added: Tensor, v: Tensor, sinks: Tensor | None, softcap: float | None
) -> Tensor:
    """scores (batch, g, r, n, keys), v (batch, g, keys, dim) -> (batch, g, r, n, dim)."""
    logits = capped(scores, softcap) + added
    if sinks is not None:
        rows = sinks.to(logits.dtype).view(*scores.shape[1:3], 1, 1)
        logits = torch.cat((logits, rows.expand(*scores.shape[:4], 1)), -1)
    return logits.softmax(-1)[..., : scores.shape[-1]].to(v.dtype) @ v[:, :, None]


def _completed(cache: Any, kv: Tensor) -> list[Tensor]:
    """Clusters (2, batch, g, any, dim) of each level that the tokens complete."""
    found, end = [kv], cache.position + kv.shape[3]
    for level in range(1, cache.levels):
        first, last = cache.position >> level, end >> level
        halves, begun = found[-1], cache.position >> (level - 1)
        if begun > 2 * first:  # the first half of a cluster came before
            at = 2 * first % cache.ring
            halves = torch.cat((cache.data[:, :, :, level - 1, at : at + 1], halves), 3)
        found.append(pairs(halves[:, :, :, : 2 * (last - first)], 3).mean(4))
    return found


def _numbers(cache: Any, level: int, completed: int) -> Tensor:
    """Which clusters of a level may be read: those in the ring, then the completed ones."""
    done = cache.position >> level
    return torch.arange(max(0, done - cache.ring), done + completed, device="cpu")


def _held(cache: Any, level: int, completed: int, numbers: Tensor) -> Tensor:
    """Those in the ring, in order: (2, batch, g, any, dim)."""
    places = numbers[: len(numbers) - completed] % cache.ring
    return cache.data[:, :, :, level].index_select(3, places.to(cache.data.device))


def _added(
    cache: Any, level: int, own: Tensor, numbers: Tensor, q: Tensor, bias: TableBias | None
) -> Tensor:
    """What the logits gain, (1, g or 1, r or 1, n, clusters): the log of the cluster's tokens and
    the bias, -inf where a token does not read it."""
    plan = _PyramidTiles(cache.pattern, 1, 1)
    query = (own >> level)[:, None]
    reads = plan.meets(level, query, numbers[None])
    wide = torch.promote_types(q.dtype, torch.float32)
    gain = reads.double().log() + level * math.log(2)
    gain = gain.to(q.device, wide)[None, None, None]
    if bias is None:
        return gain
    row = plan.bias_row(level, query, numbers[None]).to(q.device)
    rows = bias.table[row].permute(2, 0, 1)  # (heads or 1, n, clusters)
    return gain + rows.unflatten(0, (cache.data.shape[2] if len(rows) > 1 else 1, -1))


def _queries(cache: Any, level: int, own: Tensor, q: Tensor) -> Tensor:
    """The queries of the first tokens of the clusters of tokens: (batch, heads, n, dim)."""
    first = (own >> level << level) - cache.position
    source = torch.cat((cache.queries[:, :, level : level + 1].to(q.dtype), q), 2)
    return source.index_select(2, (first + 1).clamp(min=0).to(q.device))


def _store(cache: Any, new: list[Tensor], own: Tensor, q: Tensor) -> None:
    """The clusters enter the rings, the newest queries are remembered."""
    for level, clusters in enumerate(new):
        end = (cache.position >> level) + clusters.shape[3]
        numbers = torch.arange(end - min(clusters.shape[3], cache.ring), end, device="cpu")
        places = (numbers % cache.ring).to(clusters.device)
        kept = clusters[:, :, :, clusters.shape[3] - len(numbers) :]
        cache.data[:, :, :, level].index_copy_(3, places, kept)
    if cache.queries.shape[2]:
        for level in range(cache.levels):
            cache.queries[:, :, level] = _queries(cache, level, own[-1:], q)[:, :, 0]
    cache.position = int(own[-1]) + 1
