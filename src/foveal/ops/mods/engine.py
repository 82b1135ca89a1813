"""Attention under a score_mod, a chunk of tiles at a time, with its gradient.

The backward pass computes each chunk again and lets autograd differentiate it, score_mod and all,
so memory is that of a chunk however long the sequence is. A tile holds all keys of its queries.

Legend of shapes: B batch, H heads, N queries, M keys, D head_dim, V head_dim of v; inside a chunk:
b sequences, h heads, t tiles, and in a tile q queries and k keys.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from foveal.ops.define import one_at_a_time
from foveal.ops.mods.chunks import Chunk, chunks
from foveal.ops.mods.held import key_of_mod
from foveal.ops.mods.plan import Plan
from foveal.ops.mods.running import Mod, Watch, scores_of


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


def working_dtype(x: Tensor) -> torch.dtype:
    """The precision of scores and sums, for x of any shape."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _taken(
    asked: Asked, chunk: Chunk, q: Tensor, k: Tensor, v: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """q (b, h, t, q, D) times the scale, k (b, h, t, k, D) and v (b, h, t, k, V) of a chunk."""
    repeats = q.shape[1] // k.shape[1]
    taken = chunk.take(q, chunk.queries), *(chunk.take(x, chunk.keys, repeats) for x in (k, v))
    query, key, value = (x.to(working_dtype(x)) for x in taken)
    if chunk.unread is not None:  # what nobody reads may be NaN
        key, value = (x.masked_fill(chunk.unread, 0.0) for x in (key, value))
    return query * asked.scale, key, value


def _bent(asked: Asked, chunk: Chunk, q: Tensor, k: Tensor) -> Tensor:
    """What the mod makes of the scores: (b, h, t, q, k), hidden pairs included."""
    scores = q @ k.mT
    if asked.mod is None:
        return scores
    places = (chunk.batch, chunk.heads, chunk.queries, chunk.keys)
    return scores_of(asked.mod, scores, *places).to(scores.dtype)


def _chunk(
    asked: Asked, chunk: Chunk, q: Tensor, k: Tensor, v: Tensor, plain: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """What was taken for a chunk -> out (b, h, t, q, V), lse, top.

    lse and top, the largest score: (b, h, t, q). If `plain`, in steps that have derivatives.
    """
    scores = _bent(asked, chunk, q, k)
    if chunk.hidden is not None:
        scores = scores.masked_fill(chunk.hidden, -torch.inf)
    top = scores.detach().amax(-1)
    empty = top == -torch.inf
    if plain:
        # a row without keys would compute -inf - -inf
        scores = scores.masked_fill(empty[..., None], 0.0)
        weights = torch.softmax(scores, -1)
        lse = torch.logsumexp(scores, -1).masked_fill(empty, -torch.inf)
    else:
        weights = torch.softmax(scores, -1)
        # the largest weight is exp(top - lse)
        lse = torch.where(top.isinf(), top, top - weights.amax(-1).log())
    return (weights @ v).masked_fill(empty[..., None], 0.0), lse, top


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
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    out = q.new_zeros(q.shape[0] * q.shape[1] * q.shape[2], v.shape[-1])
    lse, top = (q.new_full(out.shape[:1], -torch.inf, dtype=sums) for _ in range(2))
    for chunk in chunks(asked.plan, q):
        rows = chunk.rows(q, chunk.queries)
        found = _chunk(asked, chunk, *_taken(asked, chunk, q, k, v), parts is not None)
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
        ctx.save_for_backward(*result[:2], q, k, v, *captured)
        ctx.mark_non_differentiable(result[2])
        return result

    @staticmethod
    @one_at_a_time
    def backward(ctx, grad_out, grad_lse, _):  # type: ignore[no-untyped-def]
        asked, (out, lse, *tensors) = ctx.asked, ctx.saved_tensors
        if asked.mod is not None and key_of_mod(asked.mod) != asked.key[0]:
            raise RuntimeError(
                "what score_mod captures was changed between the forward and the backward pass, "
                "which computes the scores again; change a copy, or call backward() before."
            )
        wanted = ctx.needs_input_grad[2:]
        with torch.autocast(out.device.type, enabled=False):
            if torch.is_grad_enabled():
                found = _plain_gradients(asked, tensors, wanted, grad_out, grad_lse)
            else:
                found = _gradients(asked, tensors, wanted, (out, lse), (grad_out, grad_lse))
            return None, None, *found


Gradients = list[Tensor | None]
"""Of q, k, v and each captured tensor; None where none is wanted."""


def _gradients(
    asked: Asked,
    tensors: list[Tensor],
    wanted: tuple[bool, ...],
    results: tuple[Tensor, Tensor],
    grads: tuple[Tensor, Tensor],
) -> Gradients:
    """A chunk at a time; each is summed in the same order in every run.

    results, grads: out and the log-sum-exp, and the gradients of both.
    """
    q, k, v = (x.contiguous() for x in tensors[:3])
    grad_out = grads[0].contiguous()
    shift = (results[0] * grad_out).sum(-1, keepdim=True, dtype=results[1].dtype)
    shift -= grads[1][..., None]
    empty = results[1][..., None] == -torch.inf
    per_query = [grad_out, shift, *([empty] if bool(empty.any()) else [])]
    # in the graph of a chunk these stand for what is captured, whose own graphs lie outside
    own = [x.detach().requires_grad_() for x in tensors[3:]]
    watch = Watch({id(old): new for old, new in zip(asked.captured, own, strict=True)})
    sums = [torch.zeros(x.shape, dtype=_exact(x), device=x.device) for x in tensors]
    repeats = q.shape[1] // k.shape[1]
    for chunk in chunks(asked.plan, q):
        rows = chunk.rows(q, chunk.queries), *(chunk.rows(k, chunk.keys, repeats),) * 2
        given = [chunk.take(x, chunk.queries) for x in per_query]
        taken = _taken(asked, chunk, q, k, v)
        found = _chunk_gradients(asked, chunk, taken, given, wanted, (own, watch))
        for total, at, part in zip(sums, rows, found, strict=False):
            if part is not None:
                flat = part.flatten(0, -2).to(total.dtype)
                total.view(-1, total.shape[-1]).index_add_(0, at, flat)
        for total, part in zip(sums[3:], found[3:], strict=True):
            if part is not None:
                total += part
    return [
        total.to(x.dtype) if need else None
        for total, x, need in zip(sums, tensors, wanted, strict=True)
    ]


def _chunk_gradients(
    asked: Asked,
    chunk: Chunk,
    taken: tuple[Tensor, Tensor, Tensor],
    given: list[Tensor],
    wanted: tuple[bool, ...],
    captured: tuple[list[Tensor], Watch],
) -> Gradients:
    """Of what was taken for a chunk and of what is captured; None where none flows.

    given: the gradient of out (b, h, t, q, V), and (b, h, t, q, 1): what is taken from the
        gradients of a row's weights, so that they do not change their sum, and perhaps which rows
        have no keys.
    """
    q, k = (x.requires_grad_(need) for x, need in zip(taken, wanted[:2], strict=False))
    v, grad_out = taken[2], given[0].to(taken[2].dtype)
    with torch.enable_grad(), captured[1]:
        bent = _bent(asked, chunk, q, k)
    scores = bent.detach()
    if chunk.hidden is not None:
        scores = scores.masked_fill(chunk.hidden, -torch.inf)
    weights = torch.softmax(scores, -1)
    for empty in given[2:]:
        weights.masked_fill_(empty, 0.0)
    d_v = weights.mT @ grad_out if wanted[2] else None
    inputs = [q, k, *captured[0]]
    found: Gradients = [None] * len(inputs)
    asking = [x for x in inputs if x.requires_grad]
    if bent.requires_grad and asking:
        slopes = (grad_out @ v.mT).sub_(given[1]).mul_(weights)
        grads = iter(torch.autograd.grad(bent, asking, slopes, allow_unused=True))
        found = [next(grads) if x.requires_grad else None for x in inputs]
    d_q, d_k, *rest = found
    if chunk.unread is not None:
        for part in (d_k, d_v):
            if part is not None:
                part.masked_fill_(chunk.unread, 0.0)
    return [None if d_q is None else d_q * asked.scale, d_k, d_v, *rest]


def _exact(x: Tensor) -> torch.dtype:
    """The precision of a sum over chunks."""
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


def _plain_gradients(
    asked: Asked,
    tensors: list[Tensor],
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
