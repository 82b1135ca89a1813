"""The tile plan of a pattern, brought along: which tokens are computed together, and their mask.

A plan needs a length. Where that is a symbol, it is the plan of the longest sequence: `allows`
does not look at the length, so what a query reads is the same, less the keys that are not there.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from foveal.common.symbols import known, take_first
from foveal.ops.bias import WindowBias
from foveal.ops.logits import with_sinks
from foveal.ops.lowered.call import Lowered, Part, gained, rows, softmax
from foveal.patterns import Pattern
from foveal.patterns.tiling import TileGroup

SHAPES = 4
"""Tiles are padded to so many shapes at most: each is a softmax of its own in the program."""


class Shape(NamedTuple):
    """Tiles of one shape.

    queries: (T, Q) int64, keys: (T, K) int64; what fills a tile up repeats a token of it.
    mask: (T or 1, Q, K) bool; None where every pair is allowed.
    """

    queries: Tensor
    keys: Tensor
    mask: Tensor | None


class TilePlan(NamedTuple):
    """shapes, and where each query's result stands among those of all tiles, one after the other.

    place: (queries,) int64; of a query in no tile, that of zeros that follow the last tile.
    """

    shapes: list[Shape]
    place: Tensor
    all_read: bool


def tile_plan(pattern: Pattern, length: int) -> TilePlan:
    """The plan of the pattern's queries of `length` keys, in few shapes."""
    tiling = pattern.tiles(length)
    groups = sorted(tiling.groups, key=lambda one: one.tile_k)
    shapes = [_shape(some) for some in _alike(groups)]
    count = sum(one.queries.numel() for one in shapes)
    place = torch.full((tiling.num_queries,), count, dtype=torch.int64, device="cpu")
    start = 0
    for one in shapes:  # a query that fills a tile up gets what it gets in its own place
        flat = one.queries.flatten()
        place[flat] = torch.arange(start, start + len(flat), device="cpu")
        start += len(flat)
    return TilePlan(shapes, place, bool((place < count).all()))


def _alike(groups: list[TileGroup]) -> list[list[TileGroup]]:
    """Groups that are padded to one shape: the cuts that leave the fewest pairs in excess."""
    parts = [[one] for one in groups]
    while len(parts) > SHAPES:
        costs = [_pairs(a + b) - _pairs(a) - _pairs(b) for a, b in itertools.pairwise(parts)]
        at = min(range(len(costs)), key=costs.__getitem__)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def _pairs(groups: list[TileGroup]) -> int:
    sizes = max(one.tile_q for one in groups) * max(one.tile_k for one in groups)
    return sizes * sum(one.num_tiles for one in groups)


def _shape(groups: list[TileGroup]) -> Shape:
    wide = max(one.tile_q for one in groups), max(one.tile_k for one in groups)
    queries = torch.cat([_wider(one.queries.index(), wide[0]) for one in groups])
    keys = torch.cat([_wider(one.key_index(), wide[1]) for one in groups])
    if all(one.mask is None and (one.tile_q, one.tile_k) == wide for one in groups):
        return Shape(queries, keys, None)
    masks = [_wider_mask(one, wide) for one in groups]
    if len(masks) == 1:
        return Shape(queries, keys, masks[0])
    many = [m.expand(one.num_tiles, *wide) for m, one in zip(masks, groups, strict=True)]
    return Shape(queries, keys, torch.cat(many))


def _wider(index: Tensor, size: int) -> Tensor:
    return torch.cat([index, index[:, -1:].expand(-1, size - index.shape[1])], 1)


def _wider_mask(group: TileGroup, sizes: tuple[int, int]) -> Tensor:
    """(T or 1, Q, K): keys that fill up are read by nobody, queries read as the last one does."""
    mask = group.mask
    if mask is None:
        mask = torch.ones(1, group.tile_q, group.tile_k, dtype=torch.bool, device="cpu")
    mask = pad(mask, (0, sizes[1] - mask.shape[2]))
    last = mask[:, -1:].expand(-1, sizes[0] - mask.shape[1], -1)
    return torch.cat([mask, last], 1)


def tiled(call: Lowered, plan: TilePlan, longest: int) -> Part:
    """The call by a plan for `longest` keys, of which there may be fewer."""
    queries, length = call.q.shape[2], call.k.shape[2]
    call = _filled(call, longest, plan.place.shape[0])
    parts = []
    for one in plan.shapes:
        exists = None if known(length) else one.keys < length
        mask, bias = _mask(call, one, exists), gained(call, one.queries, one.keys)
        q, k, v = (rows(x, at) for x, at in _read(call, one))
        parts.append(softmax(call, q, k, v, mask, bias, call.may_be_dead))
    outs, lses = zip(*parts, strict=True)
    out = _in_place(outs, plan, torch.zeros_like(outs[0][:, :, :1]), queries)
    if not call.lse:
        return out, None
    none = torch.full_like(lses[0][:, :, :1], -torch.inf)
    _, nothing = with_sinks(out[:, :, :1], none, call.sinks)
    return out, _in_place(lses, plan, nothing, queries)


def _read(call: Lowered, one: Shape) -> list[tuple[Tensor, Tensor]]:
    return [(call.q, one.queries), (call.k, one.keys), (call.v, one.keys)]


def _filled(call: Lowered, keys: int, queries: int) -> Lowered:
    """The call with zeros behind its tokens, for a plan of more."""
    if known(call.q.shape[2], call.k.shape[2]):
        return call
    q = pad(call.q, (0, 0, 0, queries - call.q.shape[2]))
    more = keys - call.k.shape[2]
    k, v = (pad(x, (0, 0, 0, more)) for x in (call.k, call.v))
    key_mask = None if call.key_mask is None else pad(call.key_mask, (0, more))
    bias = call.bias
    if isinstance(bias, Tensor):
        wide = [0, more if bias.shape[3] != 1 else 0, 0, 0]
        wide[3] = queries - call.q.shape[2] if bias.shape[2] != 1 else 0
        bias = pad(bias, wide)
    elif isinstance(bias, WindowBias):
        bias = WindowBias(*(pad(x, (0, 0, 0, queries - call.q.shape[2])) for x in bias))
    return call._replace(q=q, k=k, v=v, key_mask=key_mask, bias=bias)


def _mask(call: Lowered, one: Shape, exists: Tensor | None) -> Tensor | None:
    """(B or 1, 1, T, Q, K): the mask of the plan, of keys that are there and real."""
    known = one.mask
    if known is not None:
        known = known.expand(one.queries.shape[0], *known.shape[1:])[None, None]
    for other in (exists, None if call.key_mask is None else call.key_mask[:, one.keys]):
        if other is not None:
            other = (other if other.ndim == 3 else other[None])[:, None, :, None]
            known = other if known is None else known & other
    return known


def _in_place(parts: tuple[Tensor, ...], plan: TilePlan, nothing: Tensor, queries: int) -> Tensor:
    """(B, H, tokens of all tiles, ...) -> (B, H, queries, ...)

    nothing: (B, H, 1, ...), that of a query which is in no tile.
    """
    whole = torch.cat(parts if plan.all_read else (*parts, nothing), 2)
    place = take_first(plan.place, 0, queries)
    return whole.index_select(2, place)
