"""Keys and values that are pooled at all levels, side by side in one tensor.

Pooling is linear in what it pools, so its backward pass needs nothing but the weights; every level
is written where it will be read, since new memory costs more than the means.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.common.memo import sizes_of
from foveal.ops.bias import MASKED
from foveal.ops.define import define, is_transformed, one_at_a_time


@dataclass(frozen=True, eq=False)
class Levels:
    """All levels, each padded with zeros to whole units, and a last unit that nobody reads.

    k: (batch, kv_heads, joined, head_dim), means over non-empty halves.
    v: (batch, kv_heads, joined, head_dim_v), means over real tokens.
    gain: (batch or 1, joined), what the logits of each key gain: log of the tokens that it stands
        for, MASKED where there are none.
    starts, sizes: first joined position and number of clusters of each level.
    """

    k: Tensor
    v: Tensor
    gain: Tensor
    starts: list[int]
    sizes: list[int]

    def level(self, x: Tensor, number: int) -> Tensor:
        """The clusters of one level of k or v: (batch, kv_heads, clusters, head_dim)."""
        return x.narrow(2, self.starts[number], self.sizes[number])


def pool_keys(
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    levels: int,
    unit: int = 1,
    counts: Tensor | None = None,
) -> Levels:
    """Pool keys and values by halves, in the dtype of k; sums are kept in float32 at least.

    Args:
        k, v: (batch, kv_heads, tokens, head_dim or head_dim_v).
        mask: (batch, tokens) bool, True = real.
        levels: how many, the tokens included.
        unit: clusters that each level is padded to a multiple of.
        counts: (batch or 1, tokens) int, in place of a mask: each is a cluster of so many tokens.
    """
    if mask is not None:  # not a product: what is not real may be NaN
        k, v = (x.masked_fill(~mask[:, None, :, None], 0.0) for x in (k, v))
    tokens = sizes_of(k)[2]
    sizes = [-(-tokens // (1 << level)) for level in range(levels)]
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] - (-size // unit) * unit)
    wide = torch.promote_types(k.dtype, torch.float32)
    real = mask if counts is None else counts
    if real is None:
        real = torch.ones(1, tokens, dtype=torch.bool, device=k.device)
    counted, halves = _counted(real, levels)
    of_keys = [_shares((both > 0).to(wide)) for both in halves]
    of_values = [_shares(both.to(wide)) for both in halves]
    joined = starts[-1] + unit
    ends = [*starts[1:-1], joined]  # the last with the unit that nobody reads
    behind = [end - start - size for start, end, size in zip(starts, ends, sizes, strict=False)]
    count = torch.cat([F.pad(own, (0, n)) for own, n in zip(counted, behind, strict=True)], 1)
    gain = torch.where(count > 0, count.to(wide).log(), MASKED)
    pool = _pool_plainly if is_transformed(k, v) else _pool
    return Levels(
        pool(k, starts, sizes, joined, of_keys),
        pool(v, starts, sizes, joined, of_values),
        gain,
        starts[:-1],
        sizes,
    )


def count_real(real: Tensor, levels: int) -> list[Tensor]:
    """Real tokens in the clusters of each level: (batch or 1, clusters), int32."""
    return _counted(real, levels)[0]


def _counted(real: Tensor, levels: int) -> tuple[list[Tensor], list[Tensor]]:
    """`count_real`, and in the halves of all levels but the first, (batch or 1, clusters, 2)."""
    counts, halves = [real.to(torch.int32)], []
    for _ in range(levels - 1):
        halves.append(pairs(counts[-1], 1))
        counts.append(halves[-1].sum(2))
    return counts, halves


def _shares(both: Tensor) -> Tensor:
    """Weights of halves (n, clusters, 2) -> of each half in its pair, same."""
    return both / both.sum(2, keepdim=True).clamp(min=1)


def _run_pool(
    x: Tensor, starts: list[int], sizes: list[int], joined: int, shares: list[Tensor]
) -> Tensor:
    """x (batch, heads, tokens, dim) -> (batch, heads, joined, dim): every level in its place."""
    out = x.new_empty(*x.shape[:2], joined, x.shape[3])
    below = x
    for number, (start, size) in enumerate(zip(starts, sizes, strict=False)):
        target = out.narrow(2, start, size)
        if number:
            below = _means(below, shares[number - 1], target)
        else:
            target.copy_(x)
        end = start + size
        out.narrow(2, end, starts[number + 1] - end).zero_()
    out.narrow(2, starts[-1], joined - starts[-1]).zero_()
    return out


def _pool_plainly(
    x: Tensor, starts: list[int], sizes: list[int], joined: int, shares: list[Tensor]
) -> Tensor:
    """`_run_pool` in operations of which torch knows every derivative."""
    wide = torch.promote_types(x.dtype, torch.float32)
    below, parts = x.to(wide), []
    for number, size in enumerate(sizes):
        if number:
            below = (pairs(below, 2) * shares[number - 1][:, None, :, :, None]).sum(3)
        parts.append(F.pad(below, (0, 0, 0, starts[number + 1] - starts[number] - size)))
    parts.append(F.pad(below[:, :, :0], (0, 0, 0, joined - starts[-1])))
    return torch.cat(parts, 2).to(x.dtype)


def _fake_pool(
    x: Tensor, starts: list[int], sizes: list[int], joined: int, shares: list[Tensor]
) -> Tensor:
    return x.new_empty(*x.shape[:2], joined, x.shape[3])


def _run_backward(
    grad: Tensor, starts: list[int], sizes: list[int], shares: list[Tensor]
) -> Tensor:
    """The transpose of pooling: each level hands its gradient to the halves below."""
    above = grad.new_zeros(())
    wide = torch.promote_types(grad.dtype, torch.float32)
    for number in range(len(sizes) - 1, -1, -1):
        part = _by_token(grad, sizes[number], wide)
        part.copy_(grad.narrow(2, starts[number], sizes[number]))
        for half, own in enumerate(shares[number].unbind(2) if number < len(shares) else ()):
            mine = part[:, :, half::2]
            count = mine.shape[2]
            mine.addcmul_(above[:, :, :count], own[:, None, :count, None])
        above = part
    return above.to(grad.dtype)


def _back_plainly(
    grad: Tensor, starts: list[int], sizes: list[int], shares: list[Tensor]
) -> Tensor:
    """`_run_backward` in operations of which torch knows every derivative."""
    with torch.enable_grad():
        x = grad.new_zeros((*grad.shape[:2], sizes[0], grad.shape[3])).requires_grad_()
        out = _pool_plainly(x, starts, sizes, grad.shape[2], shares)
        return torch.autograd.grad(out, x, grad, create_graph=True)[0]


def _fake_backward(
    grad: Tensor, starts: list[int], sizes: list[int], shares: list[Tensor]
) -> Tensor:
    return _by_token(grad, sizes[0], grad.dtype)


def _by_token(grad: Tensor, tokens: int, dtype: torch.dtype) -> Tensor:
    """An empty (batch, heads, tokens, dim) whose heads lie side by side, for the projections."""
    batch, heads, _, dim = grad.shape
    return grad.new_empty((batch, tokens, heads, dim), dtype=dtype).transpose(1, 2)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.starts, ctx.sizes, _, shares = inputs
    ctx.save_for_backward(*shares)


@one_at_a_time
def _gradients(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    shares = list(ctx.saved_tensors)
    back = _back_plainly if is_transformed(grad) else _pool_backward
    found = back(grad, ctx.starts, ctx.sizes, shares)
    return found, None, None, None, [None] * len(shares)


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, ctx.starts, ctx.sizes, shares = inputs
    ctx.joined = grad.shape[2]
    ctx.save_for_backward(*shares)


@one_at_a_time
def _gradients_of_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """Pooling is linear, so the transpose of its transpose is pooling again."""
    shares = list(ctx.saved_tensors)
    pool = _pool_plainly if is_transformed(grad) else _pool
    found = pool(grad, ctx.starts, ctx.sizes, ctx.joined, shares)
    return found, None, None, [None] * len(shares)


_pool = define("pool", _run_pool, _fake_pool)
_pool_backward = define("pool_backward", _run_backward, _fake_backward)
torch.library.register_autograd("foveal::pool", _gradients, setup_context=_setup)
torch.library.register_autograd(
    "foveal::pool_backward", _gradients_of_backward, setup_context=_setup_backward
)


def _means(below: Tensor, share: Tensor, target: Tensor) -> Tensor:
    """Weighted means of pairs into target; returns them in the precision of the weights."""
    exact = target if target.dtype == share.dtype else torch.empty_like(target, dtype=share.dtype)
    left, right = (one[:, None, :, None] for one in share.unbind(2))
    torch.mul(below[:, :, ::2], left, out=exact)
    other = below[:, :, 1::2]
    count = other.shape[2]
    exact[:, :, :count].addcmul_(other.to(share.dtype), right[:, :, :count])
    if exact is not target:
        target.copy_(exact)
    return exact


def pool_queries(q: Tensor, mask: Tensor | None, levels: int, first: bool) -> list[Tensor]:
    """Queries of each level: q of the first token of a cluster, or the mean of its real tokens.

    q: (batch, heads, n_queries, head_dim); mask: (batch, n_queries) bool, True = real.
    """
    dtype = q.dtype
    real = (
        torch.ones(1, sizes_of(q)[2], dtype=torch.bool, device=q.device) if mask is None else mask
    )
    if mask is not None:  # what is not real takes part as zeros, so that nothing leaks
        q = q.masked_fill(~mask[:, None, :, None], 0.0)
    found = [q]
    for level in range(1, levels):
        if first:
            found.append(found[0][:, :, :: 1 << level])
            continue
        both = pairs(real, 1)
        q = _half(q.to(torch.promote_types(dtype, torch.float32)), both)
        real = both.any(2)
        found.append(q.to(dtype))
    return found


def _half(x: Tensor, real: Tensor) -> Tensor:
    """Mean over the non-empty ones of each pair: (..., n, dim) -> (..., ceil(n / 2), dim).

    x is zero where `real` (batch or 1, ceil(n / 2), 2) is False.
    """
    weight = real.sum(2).clamp(min=1).to(x.dtype)
    return pairs(x, 2).sum(3) / weight[:, None, :, None]


def pairs(x: Tensor, dim: int) -> Tensor:
    """Cut a dimension into pairs, (n) -> (ceil(n / 2), 2), behind a zero where n is odd."""
    if sizes_of(x)[dim] % 2:
        behind = [0, 0] * (x.ndim - 1 - dim) + [0, 1]
        x = F.pad(x, behind)
    return x.unflatten(dim, (-1, 2))
