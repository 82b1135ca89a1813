"""Pooled keys: every tile of queries beside the clusters that it reads, level by level.

Levels are those of the longest sequence. A shorter one leaves the upper ones without a pair, for
a pair meets at the lowest level at which its blocks are neighbours, which no length changes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from foveal.common.symbols import take_first
from foveal.ops.bias import MASKED, TableBias
from foveal.ops.logits import with_sinks
from foveal.ops.lowered.call import Lowered, Part, softmax
from foveal.ops.lowered.state import NotLoweredError, are_equal, most
from foveal.ops.merge import merge
from foveal.patterns import Pyramid
from foveal.patterns.subclasses import is_a


class Level(NamedTuple):
    """Clusters of one level, in units; what fills the last unit up is empty.

    k, v: (B, H, units, clusters, E); gain: (B or 1, units, clusters), the log of the real tokens
    of each cluster, MASKED where there are none.
    """

    k: Tensor
    v: Tensor
    gain: Tensor


def by_levels(call: Lowered) -> Part:
    """The call over means of clusters of keys.

    Raises:
        NotLoweredError: keys are pooled without end, or by another rule than a Pyramid's.
    """
    n, m = call.q.shape[2], call.k.shape[2]
    longest = most(n), most(m)
    own = type(call.pattern).joined is not Pyramid.joined
    if own or not is_a(call.pattern, Pyramid):
        raise NotLoweredError(f"keys that are pooled by {call.pattern}, which is no Pyramid")
    if None in longest:
        raise NotLoweredError(f"{call.pattern} without a longest length")
    if not isinstance(call.bias, TableBias | None):
        kind = type(call.bias).__name__
        raise NotLoweredError(f"{call.pattern} takes a TableBias or none, got bias={kind}")
    call = call._replace(unread=call.pattern.is_causal and not are_equal(n, m))
    plan = call.pattern.joined(1, 1)  # its rules, which know no length
    count = call.pattern.num_levels(max(one for one in longest if one is not None))
    keys = _pooled(call, plan.unit, count)
    if not plan.coarse:
        return _attended(call, plan, call.q, keys, list(range(count)), 1)
    real = call.key_mask if are_equal(n, m) else None
    queries = _coarse_queries(call.q, real, count, call.pattern.is_causal)
    alone = call._replace(lse=True, sinks=None)
    found: Any = [_attended(alone, plan, q, keys, [at], 0) for at, q in enumerate(queries)]
    out, lse = found[-1]
    for finer_out, finer_lse in found[-2::-1]:  # each cluster hands its result to its halves
        parent = torch.arange(finer_out.shape[2], device=out.device) // 2
        above = out.index_select(2, parent), lse.index_select(2, parent)
        out, lse = merge([(finer_out, finer_lse), above])
    out, lse = with_sinks(out, lse, call.sinks)
    return out.to(call.q.dtype), lse if call.lse else None


# -- pooling --------------------------------------------------------------------------------------


def _pooled(call: Lowered, unit: int, count: int) -> list[Level]:
    """Keys as means over non-empty halves, values as means over real tokens."""
    groups = call.q.shape[1] // call.k.shape[1]
    k, v = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (call.k, call.v))
    real = call.key_mask
    if real is None:
        real = torch.ones(1, k.shape[2], dtype=torch.bool, device=k.device)
    number, levels = real.to(k.dtype), []
    for at in range(count):
        if at:
            own = _halves(number, 1)
            k = _mean(k, (own > 0).to(k.dtype))
            v = _mean(v, own)
            number = own.sum(2)
        gain = torch.where(number > 0, number.clamp(min=1).log(), MASKED)
        keys, values = (
            _units(x.to(call.k.dtype), unit).repeat_interleave(groups, 1) for x in (k, v)
        )
        gain = _units(gain[:, None, :, None], unit, MASKED)[:, 0, ..., 0]
        levels.append(Level(keys, values, gain))
    return levels


def _halves(x: Tensor, dim: int) -> Tensor:
    """(n) -> (ceil(n / 2), 2) along a dimension, behind a zero where n is odd."""
    # written so that symbols cancel, as in bands
    half = (x.shape[dim] + 1) // 2
    behind = [0, 0] * (x.ndim - 1 - dim) + [0, 2 * half - x.shape[dim]]
    return pad(x, behind).unflatten(dim, (half, 2))


def _mean(x: Tensor, weight: Tensor) -> Tensor:
    """x (B, H, n, E) and weights (B or 1, ceil(n / 2), 2) -> (B, H, ceil(n / 2), E)."""
    share = weight / weight.sum(2, keepdim=True).clamp(min=1)
    return (_halves(x, 2) * share[:, None, :, :, None]).sum(3)


def _units(x: Tensor, unit: int, value: float = 0.0) -> Tensor:
    """x (B, H, n, E) -> (B, H, ceil(n / unit), unit, E)"""
    count = (x.shape[2] + unit - 1) // unit
    x = pad(x, (0, 0, 0, count * unit - x.shape[2]), value=value)
    return x.unflatten(2, (count, unit))


def _coarse_queries(q: Tensor, real: Tensor | None, count: int, leading: bool) -> list[Tensor]:
    """Queries of each level: of the first token of a cluster, or the mean of its real ones."""
    dtype = q.dtype
    if real is None:
        real = torch.ones(1, q.shape[2], dtype=torch.bool, device=q.device)
    else:
        q = q.masked_fill(~real[:, None, :, None], 0.0)
    own = real.to(torch.promote_types(dtype, torch.float32))
    found = [q]
    for _ in range(1, count):
        if leading:
            q = _halves(q, 2)[:, :, :, 0]
        else:
            both = _halves(own, 1)
            q = _mean(q.to(own.dtype), both)
            own = both.amax(2)
        found.append(q.to(dtype))
    return found


# -- one softmax ----------------------------------------------------------------------------------


def _attended(
    call: Lowered, plan: Any, q: Tensor, keys: list[Level], levels: list[int], fine: int
) -> Part:
    """Queries q (B, H, N, E) beside the clusters of some levels that they read.

    fine: 1 where q are tokens, at every level a cluster of 2^level; 0 where they are its clusters.
    """
    length, tile = q.shape[2], plan.tile
    count = (length + tile - 1) // tile
    tiles = torch.arange(count, device=q.device)
    q_idx = tiles[:, None] * tile + torch.arange(tile, device=q.device)
    q_idx = q_idx.clamp(max=length - 1)
    q = pad(q, (0, 0, 0, count * tile - length)).unflatten(2, (count, tile))
    parts = [_beside(call, plan, tiles, q_idx, keys[at], at, at * fine) for at in levels]
    k, v, meets, gain = (
        torch.cat([one[i] for one in parts], 3 if i < 2 else -1) for i in range(4)
    )
    if call.bias is not None:
        gain = gain + torch.cat([one[4] for one in parts], -1)
    out, lse = softmax(call, q, k, v, meets, gain, True)
    return take_first(out, 2, length), None if lse is None else take_first(lse, 2, length)


def _beside(
    call: Lowered, plan: Any, tiles: Tensor, q_idx: Tensor, keys: Level, level: int, shift: int
) -> tuple[Tensor, ...]:
    """What tiles read of one level: k, v (B, H, T, K, E), who reads whom and what the logits gain,
    (B or 1, 1, T, Q, K) each, and their bias (1, H or 1, T, Q, K)."""
    own, steps = _reached(plan, level, tiles, shift)
    number = keys.k.shape[2]
    units = own[:, None] + torch.tensor(steps, device=tiles.device)  # (T, units)
    exists = (units >= 0) & (units < number)
    inside, own_at = torch.arange(plan.unit, device=tiles.device), q_idx // (1 << shift)
    clusters = (units[:, :, None] * plan.unit + inside).flatten(1)  # (T, K)
    meets = plan.meets(level, own_at[:, :, None], clusters[:, None])
    meets = meets & exists.repeat_interleave(plan.unit, 1)[:, None]
    at = units.clamp(0, number - 1)
    k, v = (_unit_rows(x, at) for x in (keys.k, keys.v))
    gain = _unit_rows(keys.gain[:, None, ..., None], at)[..., 0]
    gain = gain.expand(gain.shape[0], 1, *meets.shape[::2])[:, :, :, None]
    meets = (gain > MASKED / 2) & meets
    gain = gain.clamp(min=0.0).expand(*gain.shape[:3], q_idx.shape[1], gain.shape[4])
    if not isinstance(call.bias, TableBias):
        return k, v, meets, gain
    row = plan.bias_row(level, own_at[:, :, None], clusters[:, None])
    return k, v, meets, gain, call.bias.table[row].movedim(-1, 0)[None]


def _reached(plan: Any, level: int, tiles: Tensor, shift: int) -> tuple[Tensor, list[int]]:
    """The first unit of each tile (T,), and the units that it may read, counted from there."""
    span = plan.unit << shift  # queries of a unit
    inside, farthest = max(1, plan.tile // span), 3 if plan.adjacent else 1
    nearest = 0 if level == 0 else 2 if plan.adjacent else 1
    ahead = 0 if plan.pattern.causal else farthest
    steps = {
        own + away
        for own in range(inside)
        for away in range(-farthest, ahead + 1)
        if abs(away) >= nearest
    }
    start = tiles * plan.tile // span if span > plan.tile else tiles * inside
    return start, sorted(steps)


def _unit_rows(x: Tensor, units: Tensor) -> Tensor:
    """x (B, H, units, clusters, E) at units (T, U) -> (B, H, T, U clusters, E)."""
    found = x.index_select(2, units.flatten()).unflatten(2, (units.shape[0], units.shape[1]))
    return found.clone(memory_format=torch.contiguous_format).flatten(3, 4)
