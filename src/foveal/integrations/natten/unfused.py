"""The two halves of natten until 0.17: logits of windows, and weighted sums of their values.

Heads come first here, (batch, heads, *size, head_dim), as they did there. The logits are a tensor
of kernel times tokens, and so are the gathered keys: `na2d` needs neither.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from foveal.common.memo import remember
from foveal.integrations.natten.checks import check_rank, check_rpb
from foveal.integrations.natten.rule import Rule
from foveal.patterns import Neighborhood


@remember(entries=32)
def _windows(rule: Rule, size: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Which keys each token reads, in their order.

    Returns:
        tokens: (tokens, kernel tokens), the index of each key.
        real: the same shape, False where a causal window ends early.
        offsets: (axes, tokens, kernel tokens), key - query + kernel - 1 in steps of the dilation.
    """
    axes = len(size)
    tokens, real, offsets = torch.zeros(()).long(), torch.ones(()).bool(), []
    for axis, side in enumerate(size):
        kernel, step = rule.kernel_size[axis], rule.dilation[axis]
        line = Neighborhood((side,), kernel, step, (rule.is_causal[axis],), "shift")
        places = torch.arange(side).where(line.mask(side), side).sort(1).values[:, :kernel]
        own = torch.arange(side)[:, None]
        offset = (places - own).div(step, rounding_mode="floor") + kernel - 1
        # an axis of queries and one of keys for each axis of the tokens
        shape = [1] * (2 * axes)
        shape[axis], shape[axes + axis] = side, kernel
        at = places.clamp(max=side - 1).view(shape)
        tokens, real = tokens * side + at, real & (places < side).view(shape)
        offsets.append(offset.clamp(max=2 * kernel - 2).view(shape))
    full = (*size, *rule.kernel_size)
    count = math.prod(size)
    joined = torch.stack([one.expand(full).reshape(count, -1) for one in offsets])
    return tokens.reshape(count, -1), real.expand(full).reshape(count, -1), joined


def _qk(
    axes: int,
    query: Tensor,
    key: Tensor,
    kernel_size: int | Sequence[int],
    dilation: int | Sequence[int] = 1,
    additional_keys: Tensor | None = None,
    is_causal: bool | Sequence[bool] | None = False,
    rpb: Tensor | None = None,
) -> Tensor:
    """Logits of each token with the keys of its window, in row-major order.

    Args:
        query: (batch, heads, *size, head_dim), already scaled.
        key: the same shape.
        kernel_size, dilation, is_causal: as in `na2d`.
        additional_keys: (batch, heads, tokens, head_dim); their logits come last.
        rpb: (heads, 2 * kernel - 1, ...) relative positions.

    Returns:
        (batch, heads, *size, kernel tokens + additional tokens), -inf where a causal window
        ends early.

    Raises:
        ValueError: shapes or options do not fit.
    """
    rule, size = _taken(axes, query, key, kernel_size, dilation, is_causal)
    tokens, real, offsets = (x.to(query.device) for x in _windows(rule, size))
    q = query.flatten(2, 1 + axes)  # (batch, heads, tokens, head_dim)
    near = _gather(key.flatten(2, 1 + axes), tokens)
    logits = torch.einsum("bhnd,bhnkd->bhnk", q, near)
    if rpb is not None:
        check_rpb(rpb, rule.kernel_size, query.shape[1])
        logits = logits + rpb[(slice(None), *offsets)].to(logits.dtype)
    logits = logits.masked_fill(~real, -torch.inf)
    if additional_keys is not None:
        logits = torch.cat([logits, q @ additional_keys.transpose(-1, -2)], -1)
    return logits.unflatten(2, size)


def _av(
    axes: int,
    attn: Tensor,
    value: Tensor,
    kernel_size: int | Sequence[int],
    dilation: int | Sequence[int] = 1,
    additional_values: Tensor | None = None,
    is_causal: bool | Sequence[bool] | None = False,
) -> Tensor:
    """Sums of the values of each token's window, weighted.

    Args:
        attn: (batch, heads, *size, kernel tokens + additional tokens), as `na2d_qk` orders them.
        value: (batch, heads, *size, head_dim).
        kernel_size, dilation, is_causal: as in `na2d`.
        additional_values: (batch, heads, tokens, head_dim).

    Returns:
        (batch, heads, *size, head_dim).

    Raises:
        ValueError: shapes or options do not fit.
    """
    rule, size = _taken(axes, value, value, kernel_size, dilation, is_causal)
    count = math.prod(rule.kernel_size)
    extra = 0 if additional_values is None else additional_values.shape[2]
    if tuple(attn.shape[2:]) != (*size, count + extra):
        raise ValueError(
            f"attn must be (batch, heads, *size, weights) = (..., {', '.join(map(str, size))}, "
            f"{count + extra}), got {tuple(attn.shape)}."
        )
    tokens = _windows(rule, size)[0].to(value.device)
    weights = attn.flatten(2, 1 + axes).to(value.dtype)
    near = _gather(value.flatten(2, 1 + axes), tokens)
    out = torch.einsum("bhnk,bhnkd->bhnd", weights[..., :count], near)
    if additional_values is not None:
        out = out + weights[..., count:] @ additional_values
    return out.unflatten(2, size)


def _taken(
    axes: int, query: Any, key: Any, kernel_size: Any, dilation: Any, is_causal: Any
) -> tuple[Rule, tuple[int, ...]]:
    for name, x in (("query", query), ("key", key)):
        check_rank(name, x, axes + 3, "batch, heads, *size, head_dim")
    if query.shape[:-1] != key.shape[:-1]:
        raise ValueError(
            "query and key must have the same heads and tokens, (batch, heads, *size, head_dim), "
            f"got {tuple(query.shape)}, {tuple(key.shape)}."
        )
    rule = Rule.of(axes, kernel_size, 1, dilation, is_causal)
    size = tuple(query.shape[2:-1])
    rule.check_size(size, tuple(query.movedim(-2, 1).shape))
    return rule, size


def _gather(x: Tensor, tokens: Tensor) -> Tensor:
    """(batch, heads, tokens, head_dim) -> (batch, heads, tokens, kernel tokens, head_dim)."""
    return x.index_select(2, tokens.flatten()).unflatten(2, tokens.shape)


def _named(function: Any, axes: int, name: str) -> Any:
    """The function for tokens of so many axes, under natten's name."""
    found = functools.partial(function, axes)
    found.__doc__ = function.__doc__
    found.__name__ = name  # type: ignore[attr-defined]
    return found


na1d_qk, na2d_qk, na3d_qk = (_named(_qk, n, f"na{n}d_qk") for n in (1, 2, 3))
na1d_av, na2d_av, na3d_av = (_named(_av, n, f"na{n}d_av") for n in (1, 2, 3))


# -- by the names and in the order of versions until 0.14, which transformers' DiNAT asks for ----


def natten1dqkrpb(
    query: Tensor, key: Tensor, rpb: Tensor | None, kernel_size: int, dilation: int = 1
) -> Tensor:
    """`na1d_qk`."""
    return _qk(1, query, key, kernel_size, dilation, rpb=rpb)


def natten1dav(attn: Tensor, value: Tensor, kernel_size: int, dilation: int = 1) -> Tensor:
    """`na1d_av`."""
    return _av(1, attn, value, kernel_size, dilation)


def natten2dqkrpb(
    query: Tensor, key: Tensor, rpb: Tensor | None, kernel_size: int, dilation: int = 1
) -> Tensor:
    """`na2d_qk`."""
    return _qk(2, query, key, kernel_size, dilation, rpb=rpb)


def natten2dav(attn: Tensor, value: Tensor, kernel_size: int, dilation: int = 1) -> Tensor:
    """`na2d_av`."""
    return _av(2, attn, value, kernel_size, dilation)
