"""Attention over a tile plan in plain operations, which have every derivative that torch knows.

For second derivatives, forward mode and torch.func, where the operators have none. Memory is that
of the pairs that the plan visits.

Legend of shapes: B batch, G key/value heads, R query heads per key/value head, H = G R, N queries,
M keys, E features; in a group of tiles: t tiles, q queries and k keys of a tile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from foveal.common.by_example import dropout
from foveal.ops.bias import MASKED, bounded, finite, window_place
from foveal.ops.logits import capped, with_sinks
from foveal.patterns.tiling import TileGroup


def attend_plainly(operands: Any) -> tuple[Tensor, Tensor]:
    """operands -> out (B, H, N, E) in the dtype of q, and lse (B, H, N), as an operator gives."""
    call = _Call(operands)
    parts = [call.group(group) for group in call.tiling.groups]
    places = [group.queries.index().flatten() for group in call.tiling.groups]
    found = torch.cat(places) if places else torch.zeros(0, dtype=torch.long, device="cpu")
    absent = torch.ones(call.queries, dtype=torch.bool, device="cpu")
    absent = absent.index_fill(0, found, False).nonzero()[:, 0]
    out, lse = call.nothing(len(absent))
    out = torch.cat([part for part, _ in parts] + [out], 2)
    lse = torch.cat([part for _, part in parts] + [lse], 2)
    order = torch.cat([found, absent]).argsort().to(out.device)
    out, lse = out[:, :, order].to(operands.q.dtype), lse[:, :, order]
    return with_sinks(out, lse, operands.sinks)


def plain_gradients(
    operands: Any, grad_out: Tensor, grad_lse: Tensor, needed: tuple[bool, ...]
) -> list[Tensor | None]:
    """Differentiable gradients of the first seven operands, None where none is needed.

    Raises:
        RuntimeError: weights were dropped, by a draw that cannot be made again here.
    """
    if operands.dropout_p:
        raise RuntimeError(
            "attention with dropout has no second derivative in this implementation; take "
            "impl='reference' or dropout_p=0."
        )
    return gradients_again(attend_plainly, operands, (grad_out, grad_lse), needed)


def gradients_again(
    run: Callable[[Any], tuple[Tensor, ...]],
    operands: Any,
    given: tuple[Tensor, ...],
    needed: tuple[bool, ...],
) -> list[Tensor | None]:
    """Gradients of the first of the operands that can themselves be differentiated.

    Args:
        run: operands, a named tuple, -> results, in operations of which torch knows all.
        given: gradients of the results.
        needed: for each of the first operands whether its gradient is wanted; others are None.
    """
    with torch.enable_grad():
        # views, so that q, k and v may be one tensor and have gradients of their own
        own = [x if x is None else x.view_as(x) for x in operands[: len(needed)]]
        found = run(operands._replace(**dict(zip(operands._fields, own, strict=False))))
        wanted = [x for x, need in zip(own, needed, strict=True) if x is not None and need]
        grads = iter(
            torch.autograd.grad(found, wanted, given, create_graph=True, materialize_grads=True)
        )
    return [
        next(grads) if x is not None and need else None
        for x, need in zip(own, needed, strict=True)
    ]


class _Call:
    """What the groups of one call share."""

    def __init__(self, operands: Any) -> None:
        dtype = operands.accumulation
        self.operands, self.pattern = operands, operands.pattern
        self.key_mask = operands.key_mask
        q, k, v = (x.to(dtype) for x in operands[:3])
        self.tiling = self.pattern.tiles(k.shape[2])
        unread = self.tiling.unread
        if unread is not None:  # what nobody may read may be anything, NaN included
            k, v = (x.index_fill(2, unread.to(x.device), 0.0) for x in (k, v))
        if self.key_mask is not None and self.key_mask.dtype == torch.bool:
            k, v = (x.masked_fill(~self.key_mask[:, None, :, None], 0.0) for x in (k, v))
        self.q = (q * operands.scale).unflatten(1, (k.shape[1], -1))  # (B, G, R, N, E)
        self.k, self.v = k[:, :, None], v[:, :, None]
        self.queries = q.shape[2]

    def nothing(self, count: int) -> tuple[Tensor, Tensor]:
        """What queries without keys give."""
        shape = (*self.operands.q.shape[:2], count)
        # sums of nothing, so that a call of nobody but these has its derivatives (zeros) too
        zero = torch.stack([x[..., :0].sum() for x in (self.q, self.k, self.v)]).sum()
        out = zero.expand(*shape, self.v.shape[-1])
        return out, zero.expand(shape) - torch.inf

    def group(self, group: TileGroup) -> tuple[Tensor, Tensor]:
        """(B, H, t q, E) and (B, H, t q) of one group."""
        at_q, at_k = (x.to(self.q.device) for x in (group.queries.index(), group.key_index()))
        logits = self.q[:, :, :, at_q] @ self.k[:, :, :, at_k].mT  # (B, G, R, t, q, k)
        logits = capped(logits.flatten(1, 2), self.operands.softcap or None)
        logits = self._biased(logits, at_q, at_k)
        forbidden = None if group.mask is None else ~group.mask.to(logits.device)
        if self.key_mask is not None and self.key_mask.dtype == torch.bool:
            hidden = ~self.key_mask[:, None, at_k][:, :, :, None]
            forbidden = hidden if forbidden is None else hidden | forbidden
        if forbidden is not None:
            logits = logits.masked_fill(forbidden, MASKED)
        dead = logits.detach().amax(-1, keepdim=True) <= MASKED / 2
        logits = logits.masked_fill(dead, 0.0)
        weights = logits.softmax(-1).masked_fill(dead, 0.0)
        if self.operands.dropout_p:
            weights = dropout(weights, self.operands.dropout_p)
        weights = weights.unflatten(1, self.q.shape[1:3])
        out = (weights @ self.v[:, :, :, at_k]).flatten(3, 4).flatten(1, 2)
        lse = logits.logsumexp(-1).masked_fill(dead[..., 0], -torch.inf)
        return out, lse.flatten(2, 3)

    def _biased(self, logits: Tensor, at_q: Tensor, at_k: Tensor) -> Tensor:
        """logits (B, H, t, q, k) and what is added to them."""
        bias, rows, columns = self.operands[3:6]
        if bias is not None:
            bias = finite(bias, logits.dtype)
            if self.pattern.biased_by_table:
                place = self.pattern.bias_place(at_q[:, :, None], at_k[:, None])
                added = bias[:, :, 0, place]
            else:
                i = at_q[:, :, None] if bias.shape[2] > 1 else torch.zeros_like(at_q)[:, :, None]
                j = at_k[:, None] if bias.shape[3] > 1 else torch.zeros_like(at_k)[:, None]
                added = bias[:, :, i, j]
            logits = logits + bounded(added)
        for axis, values in enumerate((rows, columns)):
            if values is not None:
                logits = logits + self._window(values.to(logits.dtype), at_q, at_k, axis)
        if self.key_mask is not None and self.key_mask.dtype != torch.bool:
            logits = logits + self.key_mask[:, None, at_k][:, :, :, None].to(logits.dtype)
        return logits

    def _window(self, values: Tensor, at_q: Tensor, at_k: Tensor, axis: int) -> Tensor:
        """values (B, H, N, places) -> (B, H, t, q, k): one axis of a WindowBias."""
        pattern = self.pattern
        q = pattern.query_coordinates(at_q)[axis][:, :, None]
        place = window_place(pattern, q, pattern.coordinates(at_k)[axis][:, None], axis)
        place = place.clamp(0, values.shape[-1] - 1)
        mine = values[:, :, at_q]
        return mine.gather(-1, place.expand(*values.shape[:2], *place.shape))
