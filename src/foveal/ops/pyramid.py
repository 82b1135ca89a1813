"""attend() on pooled keys: keys and values of all levels side by side, one softmax over them.

Every level's clusters are laid into one long tensor, in which the tile plan of `pattern.joined`
says who reads what. With fine queries a single pass of the tiled engine then is the whole
attention; with coarse ones the levels come back at their own lengths and are merged upwards.
"""

from __future__ import annotations

import torch
from torch import Tensor

from foveal.common.by_example import dropout
from foveal.common.memo import sizes_of, untraced
from foveal.ops.bias import TableBias
from foveal.ops.logits import capped, with_sinks
from foveal.ops.merge import merge
from foveal.ops.operator import Attention
from foveal.ops.pooling import pool_keys, pool_queries
from foveal.ops.reference import without_unread
from foveal.ops.rows_without_keys import softmax_rows
from foveal.ops.tiled_op import tiled_attend
from foveal.patterns import Pattern


def pyramid_attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    *,
    bias: TableBias | None = None,
    key_mask: Tensor | None = None,
    query_mask: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    sinks: Tensor | None = None,
    softcap: float | None = None,
    engine: Attention = tiled_attend,
) -> tuple[Tensor, Tensor]:
    """Hierarchical attention; queries and keys may differ in number.

    Args:
        q: (batch, heads, n_queries, head_dim).
        k, v: (batch, kv_heads, n_keys, head_dim or head_dim_v); kv_heads divides heads.
        bias: hierarchical relative positions.
        key_mask: (batch, n_keys) bool, True = real.
        query_mask: (batch, n_queries) bool; coarse queries are means of real tokens only.
        scale, dropout_p, sinks, softcap: as in `attend`; dropout drops clusters.
        engine: what computes the tile plan; one that adds a floating key mask as it stands, and
            knows tables of biases if there is one.

    Returns:
        (out, lse) as `attend` returns them.
    """
    scale = sizes_of(q)[-1] ** -0.5 if scale is None else scale
    n, m = sizes_of(q)[2], sizes_of(k)[2]
    plan = pattern.joined(n, m)
    if not n or not m:
        dtype = torch.promote_types(q.dtype, torch.float32)
        out, lse = (
            q.new_zeros((*q.shape[:3], v.shape[-1])),
            q.new_full(q.shape[:3], -torch.inf, dtype=dtype),
        )
        none = q[..., :0].sum() + k[..., :0].sum() + v[..., :0].sum()  # 0, with a gradient
        return with_sinks(out + none, lse + none, sinks)
    keys = pool_keys(k, v, key_mask, plan.levels, plan.unit)
    table = None if bias is None else bias.by_head()
    rest = (table, keys.gain.expand(q.shape[0], -1), scale, dropout_p)
    if not plan.coarse:
        return engine(q, keys.k, keys.v, plan, *rest, sinks=sinks, softcap=softcap)
    queries = pool_queries(q, query_mask, plan.levels, first=pattern.is_causal)
    out, lse = engine(torch.cat(queries, 2), keys.k, keys.v, plan, *rest, softcap=softcap)
    sizes = [sizes_of(part)[2] for part in queries]
    return with_sinks(*_merge_upwards(out.split(sizes, 2), lse.split(sizes, 2)), sinks)


def _merge_upwards(outs: tuple[Tensor, ...], lses: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Merge the levels, the coarsest first; each cluster hands its result to both its halves."""
    out, lse = outs[-1], lses[-1]
    for finer_out, finer_lse in zip(outs[-2::-1], lses[-2::-1], strict=True):
        length = sizes_of(finer_out)[2]
        above = (out.repeat_interleave(2, 2)[:, :, :length], lse.repeat_interleave(2, 2))
        out, lse = merge([(finer_out, finer_lse), (above[0], above[1][:, :, :length])])
    return out, lse


# -- the definition -----------------------------------------------------------------------------


def pyramid_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    *,
    bias: TableBias | None = None,
    key_mask: Tensor | None = None,
    query_mask: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    sinks: Tensor | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The same by dense matrices of fine tokens: slow, plain, and the definition.

    All arguments as in `pyramid_attend`.
    """
    scale = sizes_of(q)[-1] ** -0.5 if scale is None else scale
    dtype = q.dtype
    q, k, v = (x.to(torch.promote_types(dtype, torch.float32)) for x in (q, k, v))
    read = pattern.mask(sizes_of(q)[2], sizes_of(k)[2], q.device)
    k, v = without_unread(k, v, read, key_mask)
    groups = sizes_of(q)[1] // sizes_of(k)[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    logits = _dense_logits(q, k, v, pattern, bias, key_mask, query_mask, scale, softcap)
    weights, lse = softmax_rows(logits)
    if dropout_p:
        weights = dropout(weights, dropout_p)
    return with_sinks((weights @ v).to(dtype), lse, sinks)


def _dense_logits(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    bias: TableBias | None,
    key_mask: Tensor | None,
    query_mask: Tensor | None,
    scale: float,
    softcap: float | None,
) -> Tensor:
    """Logits of all pairs of fine tokens (batch, heads, n_queries, n_keys), -inf = no pair."""
    n, m = sizes_of(q)[2], sizes_of(k)[2]
    i, j = torch.arange(n, device=q.device)[:, None], torch.arange(m, device=q.device)[None]
    plan = pattern.joined(n, m)
    count = plan.levels
    pooled = pool_keys(k, v, key_mask, count)
    keys = [pooled.level(pooled.k, number) for number in range(count)]
    queries = [q] * count
    if plan.coarse:
        queries = pool_queries(q, query_mask, count, first=pattern.is_causal)
    with untraced():  # it asks for values, of places alone
        level = pattern.level(i, j)
    logits = q.new_full((*q.shape[:3], m), -torch.inf)
    for at, (q_at, k_at) in enumerate(zip(queries, keys, strict=True)):
        shared = 1 << at if plan.coarse else 1
        scores = q_at.repeat_interleave(shared, 2)[:, :, :n] * scale
        scores = capped(scores @ k_at.repeat_interleave(1 << at, 2)[:, :, :m].mT, softcap)
        if bias is not None:
            row = plan.bias_row(at, plan.cluster_of(i, at), j >> at)
            scores = scores + bias.table[row].permute(2, 0, 1).to(scores.dtype)
        logits = torch.where((level == at) & pattern.allows(i, j), scores, logits)
    if key_mask is not None:
        logits = logits.masked_fill(~key_mask[:, None, None], -torch.inf)
    return logits
