"""Attention under a score_mod, a chunk of tiles at a time, with its gradient.

The backward pass computes each chunk again and lets autograd differentiate it, score_mod and all,
so memory is that of a chunk however long the sequence is. A tile holds all keys of its queries.

Legend of shapes: B batch, H heads, N queries, M keys, D head_dim, V head_dim of v; inside a chunk:
b sequences, h heads, t tiles, and in a tile q queries and k keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from foveal.ops.mods.held import key_of_mod
from foveal.ops.mods.plan import Plan, Tiles
from foveal.ops.mods.running import Mod, Watch, scores_of

CHUNK = 1 << 20
"""Scores in one chunk, unless one tile of one head has more."""


@dataclass(frozen=True, eq=False)
class Asked:
    """What to compute, but for the tensors.

    need_lse: whether the log-sum-exp is asked for; else it may hold anything.
    captured: tensors of any shape that the mod captures and that need a gradient.
    key: what the mod held when it ran; see `key_of_mod`.
    """

    plan: Plan
    mod: Mod | None
    scale: float
    need_lse: bool = True
    captured: list[Tensor] = field(default_factory=list)
    key: list[object] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Chunk:
    """Some tiles of some heads of some sequences; all tensors on the device of the call.

    batch, heads: (b,) and (h,) numbers.
    queries, keys: (t, q) and (t, k) positions.
    mask: (b or 1, h or 1, t or 1, q, k) bool, or None where every pair is allowed.
    """

    batch: Tensor
    heads: Tensor
    queries: Tensor
    keys: Tensor
    mask: Tensor | None

    def rows(self, x: Tensor, positions: Tensor, repeats: int = 1) -> Tensor:
        """Which rows of x (B, H / repeats, tokens, E), laid flat, the positions are: one row."""
        heads = self.heads // repeats
        lead = self.batch[:, None] * x.shape[1] + heads
        return (lead[:, :, None, None] * x.shape[2] + positions).flatten()

    def take(self, x: Tensor, positions: Tensor, repeats: int = 1) -> Tensor:
        """x (B, H / repeats, tokens, E) -> (b, h, t, items, E)."""
        flat = x.reshape(-1, x.shape[-1])
        shape = (len(self.batch), len(self.heads), *positions.shape, x.shape[-1])
        return flat.index_select(0, self.rows(x, positions, repeats)).view(shape)


def chunks(plan: Plan, q: Tensor) -> Iterator[Chunk]:
    """All chunks of a call, always in the same order; q (B, H, N, D)."""
    for part in plan.parts:
        batch = _numbers(part.batch, q.shape[0])
        heads = _numbers(part.heads, q.shape[1])
        for tiles in part.tiles:
            num_k = tiles.read.shape[1] * plan.cells.columns.size
            tile = max(1, tiles.num_q * num_k)
            num_tiles = max(1, min(len(tiles.number), CHUNK // tile))
            num_heads = max(1, min(len(heads), CHUNK // (tile * num_tiles)))
            num_batch = max(1, CHUNK // (tile * num_tiles * num_heads))
            for first in range(0, len(tiles.number), num_tiles):
                own = tiles.take(slice(first, first + num_tiles))
                yield from _of_tiles(plan, own, batch, heads, (num_batch, num_heads), q.device)


def _numbers(chosen: tuple[int, ...] | None, count: int) -> Tensor:
    if chosen is None:
        return torch.arange(count, device="cpu")
    return torch.tensor(chosen, device="cpu")


def _of_tiles(
    plan: Plan,
    tiles: Tiles,
    batch: Tensor,
    heads: Tensor,
    most: tuple[int, int],
    device: torch.device,
) -> Iterator[Chunk]:
    queries, keys = plan.queries(tiles).to(device), plan.keys(tiles).to(device)
    own = plan.cells.kinds.shape
    for b in batch.split(most[0]):
        for h in heads.split(most[1]):
            at = (int(b[0]) if own[0] > 1 else 0, int(h[0]) if own[1] > 1 else 0)
            mask = plan.mask(tiles, at)
            mask = None if mask is None else mask.to(device)[None, None]
            yield Chunk(b.to(device), h.to(device), queries, keys, mask)


def working_dtype(x: Tensor) -> torch.dtype:
    """The precision of scores and sums, for x of any shape."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _chunk(
    asked: Asked, chunk: Chunk, q: Tensor, k: Tensor, v: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """q (b, h, t, q, D), k (b, h, t, k, D), v (b, h, t, k, V) -> out (b, h, t, q, V), lse, top.

    lse and top, the largest score: (b, h, t, q).
    """
    q, k, v = (x.to(working_dtype(x)) for x in (q, k, v))
    mask = chunk.mask
    if mask is not None:  # what nobody reads may be NaN
        unread = ~mask.any(-2)[..., None]
        k, v = k.masked_fill(unread, 0.0), v.masked_fill(unread, 0.0)
    scores = (q @ k.mT) * asked.scale
    if asked.mod is not None:
        places = (chunk.batch, chunk.heads, chunk.queries, chunk.keys)
        scores = scores_of(asked.mod, scores, *places).to(scores.dtype)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    top = scores.detach().amax(-1)
    empty = top == -torch.inf
    # a row without keys would compute -inf - -inf
    scores = scores.masked_fill(empty[..., None], 0.0)
    lse = top
    if asked.need_lse:
        lse = torch.logsumexp(scores, -1).masked_fill(empty, -torch.inf)
    out = torch.softmax(scores, -1) @ v
    return out.masked_fill(empty[..., None], 0.0), lse, top


def _taken(chunk: Chunk, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    repeats = q.shape[1] // k.shape[1]
    key, value = (chunk.take(x, chunk.keys, repeats) for x in (k, v))
    return chunk.take(q, chunk.queries), key, value


Result = tuple[Tensor, Tensor, Tensor]
"""out (B, H, N, V), and the log-sum-exp and the largest score, both (B, H, N)."""


def attend_by_mod(asked: Asked, q: Tensor, k: Tensor, v: Tensor, plain: bool) -> Result:
    """Attention of a plan under a score_mod; differentiable, captured tensors included.

    Args:
        q, k, v: (B, H, N, D), (B, G, M, D) and (B, G, M, V); G divides H.
        plain: in operations that every transform of torch knows; graphs then hold every pair.
    """
    if plain:
        with Watch():
            return _forward(asked, q, k, v, [])
    watch = Watch()
    with torch.no_grad(), watch:
        result = _forward(asked, q, k, v, None)
    tensors = (q, k, v, *watch.noted.values())
    if not (torch.is_grad_enabled() and any(x.requires_grad for x in tensors)):
        return result
    asked.captured.extend(watch.noted.values())
    if asked.mod is not None:
        asked.key.append(key_of_mod(asked.mod))
    return _Attention.apply(asked, result, *tensors)


def _forward(
    asked: Asked,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    parts: list[tuple[Tensor, ...]] | None,
) -> Result:
    """All chunks; written in place, or by way of `parts` where autograd follows."""
    sums = working_dtype(q)
    out = q.new_zeros(q.shape[0] * q.shape[1] * q.shape[2], v.shape[-1])
    lse, top = (q.new_full(out.shape[:1], -torch.inf, dtype=sums) for _ in range(2))
    for chunk in chunks(asked.plan, q):
        rows = chunk.rows(q, chunk.queries)
        found = _chunk(asked, chunk, *_taken(chunk, q, k, v))
        flat = (found[0].flatten(0, -2).to(q.dtype), *(x.flatten() for x in found[1:]))
        if parts is None:
            for whole, own in zip((out, lse, top), flat, strict=True):
                whole.index_copy_(0, rows, own)
        else:
            parts.append((rows, *flat))
    if parts:
        rows, *flats = (torch.cat(one) for one in zip(*parts, strict=True))
        out, lse, top = (
            whole.index_copy(0, rows, own)
            for whole, own in zip((out, lse, top), flats, strict=True)
        )
    return out.view(*q.shape[:3], -1), lse.view(q.shape[:3]), top.view(q.shape[:3])


class _Attention(torch.autograd.Function):
    """A result that is known already, and its gradient."""

    @staticmethod
    def forward(ctx, asked, result, q, k, v, *captured):  # type: ignore[no-untyped-def]
        ctx.asked = asked
        ctx.save_for_backward(q, k, v, *captured)
        ctx.mark_non_differentiable(result[2])
        return result

    @staticmethod
    def backward(ctx, grad_out, grad_lse, _):  # type: ignore[no-untyped-def]
        asked, (q, k, v, *captured) = ctx.asked, ctx.saved_tensors
        if asked.mod is not None and key_of_mod(asked.mod) != asked.key[0]:
            raise RuntimeError(
                "what score_mod captures was changed between the forward and the backward pass, "
                "which computes the scores again; change a copy, or call backward() before."
            )
        wanted = ctx.needs_input_grad[2:]
        tensors = (q, k, v, *captured)
        with torch.autocast(q.device.type, enabled=False):
            run = _plain_gradients if torch.is_grad_enabled() else _gradients
            return None, None, *run(asked, tensors, wanted, grad_out, grad_lse)


Gradients = list[Tensor | None]
"""Of q, k, v and each captured tensor; None where none is wanted."""


def _gradients(
    asked: Asked,
    tensors: tuple[Tensor, ...],
    wanted: tuple[bool, ...],
    grad_out: Tensor,
    grad_lse: Tensor,
) -> Gradients:
    """A chunk at a time; each is summed in the same order in every run."""
    q, k, v, *captured = tensors
    # in the graph of a chunk these stand for what is captured, whose own graphs lie outside
    own = [x.detach().requires_grad_() for x in captured]
    watch = Watch({id(old): new for old, new in zip(asked.captured, own, strict=True)})
    sums = [torch.zeros(x.shape, dtype=_exact(x), device=x.device) for x in tensors]
    repeats = q.shape[1] // k.shape[1]
    for chunk in chunks(asked.plan, q):
        taken = zip(_taken(chunk, q, k, v), wanted[:3], strict=True)
        leaves = [x.detach().requires_grad_(need) for x, need in taken]
        with torch.enable_grad(), watch:
            out, lse, _ = _chunk(asked, chunk, *leaves)
        given = (
            chunk.take(grad_out, chunk.queries).to(out.dtype),
            chunk.take(grad_lse[..., None], chunk.queries)[..., 0].to(lse.dtype),
        )
        found = _chunk_gradients((out, lse), given, [*leaves, *own])
        places = (
            chunk.rows(q, chunk.queries),
            *(chunk.rows(k, chunk.keys, repeats),) * 2,
        )
        for total, rows, part in zip(sums, places, found, strict=False):
            if part is not None:
                flat = part.flatten(0, -2).to(total.dtype)
                total.view(-1, total.shape[-1]).index_add_(0, rows, flat)
        for total, part in zip(sums[3:], found[3:], strict=True):
            if part is not None:
                total += part
    return [
        total.to(x.dtype) if need else None
        for total, x, need in zip(sums, tensors, wanted, strict=True)
    ]


def _chunk_gradients(
    outputs: tuple[Tensor, Tensor], given: tuple[Tensor, Tensor], inputs: list[Tensor]
) -> Gradients:
    """Of each input; None where none flows. The log-sum-exp does not depend on values."""
    pairs = [(x, grad) for x, grad in zip(outputs, given, strict=True) if x.requires_grad]
    asked = [x for x in inputs if x.requires_grad]
    if not pairs or not asked:
        return [None] * len(inputs)
    outs, grads = zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(outs, asked, grads, allow_unused=True))
    return [next(found) if x.requires_grad else None for x in inputs]


def _exact(x: Tensor) -> torch.dtype:
    """The precision of a sum over chunks."""
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


def _plain_gradients(
    asked: Asked,
    tensors: tuple[Tensor, ...],
    wanted: tuple[bool, ...],
    grad_out: Tensor,
    grad_lse: Tensor,
) -> Gradients:
    """The same so that it can itself be differentiated; its graph holds every pair."""
    own = [x.view_as(x) for x in tensors]
    watch = Watch({id(old): new for old, new in zip(asked.captured, own[3:], strict=True)})
    with watch:
        out, lse, _ = _forward(asked, own[0], own[1], own[2], [])
    inputs = [x for x, need in zip(own, wanted, strict=True) if need]
    pairs = [(x, g) for x, g in ((out, grad_out), (lse, grad_lse)) if x.requires_grad]
    if not pairs:  # nobody reads anything
        return [
            x.new_zeros(x.shape) if need else None for x, need in zip(own, wanted, strict=True)
        ]
    outs, grads = zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(outs, inputs, grads, create_graph=True, allow_unused=True))
    return [next(found) if need else None for need in wanted]
