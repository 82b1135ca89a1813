"""natten's functions, with its signatures, computed by foveal on any device that torch has.

Tensors are heads last, as natten has them: (batch, *size, heads, head_dim).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from foveal.integrations.natten.checks import (
    SIZES,
    check_rank,
    check_rpb,
    check_tokens,
    check_tuning,
    flat_mask,
)
from foveal.integrations.natten.dense import attention, merge_attentions
from foveal.integrations.natten.rule import Rule
from foveal.integrations.natten.unfused import (
    na1d_av,
    na1d_qk,
    na2d_av,
    na2d_qk,
    na3d_av,
    na3d_qk,
    natten1dav,
    natten1dqkrpb,
    natten2dav,
    natten2dqkrpb,
)
from foveal.ops import TableBias, attend, merge
from foveal.patterns import Full

__all__ = [
    "attention",
    "merge_attentions",
    "na1d",
    "na1d_av",
    "na1d_qk",
    "na2d",
    "na2d_av",
    "na2d_qk",
    "na3d",
    "na3d_av",
    "na3d_qk",
    "natten1dav",
    "natten1dqkrpb",
    "natten2dav",
    "natten2dqkrpb",
    "neighborhood_attention_generic",
]


def neighborhood_attention_generic(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    is_causal: bool | Sequence[bool] | None = False,
    scale: float | None = None,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    attention_kwargs: dict[str, Any] | None = None,
    backend: str | None = None,
    q_tile_shape: Sequence[int] | None = None,
    kv_tile_shape: Sequence[int] | None = None,
    backward_q_tile_shape: Sequence[int] | None = None,
    backward_kv_tile_shape: Sequence[int] | None = None,
    backward_kv_splits: Sequence[int] | None = None,
    backward_use_pt_reduction: bool = False,
    run_persistent_kernel: bool = True,
    kernel_schedule: Any = None,
    torch_compile: bool = False,
    return_lse: bool = False,
    *,
    key_mask: Tensor | None = None,
    additional_key_mask: Tensor | None = None,
    rpb: Tensor | None = None,
    dropout_p: float = 0.0,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of each token to the window around it.

    What natten has not, comes last: training on a CPU, padding, relative positions, dropout, a
    kernel of one token on an axis, values of another head_dim than queries.

    Args:
        query: (batch, *size, heads, head_dim), size of one to three axes.
        key: (batch, *size, kv_heads, head_dim); kv_heads divides heads.
        value: (batch, *size, kv_heads, head_dim_v).
        kernel_size: sides of the window, an int or one for each axis.
        stride: so many tokens share the window of the one in their middle.
        dilation: distance between neighbouring keys.
        is_causal: whether the window ends at its token, a bool or one for each axis.
        scale: factor of q k^T; head_dim ** -0.5 when None.
        additional_keys: (batch, tokens, kv_heads, head_dim), read by every query as well.
        additional_values: (batch, tokens, kv_heads, head_dim_v).
        attention_kwargs, backend, q_tile_shape, kv_tile_shape, backward_q_tile_shape,
            backward_kv_tile_shape, backward_kv_splits, backward_use_pt_reduction,
            run_persistent_kernel, kernel_schedule, torch_compile: choose one of natten's kernels.
            They are understood, and change nothing.
        return_lse: return the log-sum-exp as well.
        key_mask: (batch, *size) bool, True = a real token. A query without any key gives zeros.
        additional_key_mask: (batch, tokens) bool, the same of additional keys.
        rpb: (heads, 2 * kernel - 1, ...), one axis for each of size: what a logit gains by the
            offset key - query, in steps of the dilation, as natten had it until 0.17.
        dropout_p: probability of dropping a weight.

    Returns:
        (batch, *size, heads, head_dim_v), and with return_lse the log-sum-exp (batch, *size,
        heads) in float32, or float64 of float64.

    Raises:
        TypeError: what must be a tensor is none.
        ValueError: shapes or options do not fit, or a window is larger than the tokens are.
    """
    axes = check_tokens(query, key, value)
    check_tuning(backend, kernel_schedule, attention_kwargs)
    rule = Rule.of(axes, kernel_size, stride, dilation, is_causal)
    shape = tuple(query.shape)
    size = shape[1 : 1 + axes]
    rule.check_size(size, shape)
    bias = None if rpb is None else _table(rpb, rule, shape[-2])
    mask = None if key_mask is None else flat_mask(key_mask, shape[: 1 + axes])
    q, k, v = (x.flatten(1, axes).transpose(1, 2) for x in (query, key, value))
    options: dict[str, Any] = {"scale": scale, "dropout_p": dropout_p}
    more = _additional(q, k, v, additional_keys, additional_values)
    options["return_lse"] = return_lse or more is not None
    found: Any = attend(q, k, v, rule.pattern(size), bias=bias, key_mask=mask, **options)
    if more is not None:
        other = attend(q, *more, Full(), key_mask=additional_key_mask, **options)
        found = merge([found, other])
    out = found[0] if options["return_lse"] else found
    out = out.transpose(1, 2).contiguous().unflatten(1, size)  # it is, as a rule
    return (out, found[1].transpose(1, 2).unflatten(1, size)) if return_lse else out


def _over(axes: int) -> Any:
    """The generic function for tokens of so many axes."""
    name = f"na{axes}d"

    @functools.wraps(neighborhood_attention_generic)
    def run(query: Tensor, *args: Any, **options: Any) -> Any:
        if isinstance(query, Tensor) and query.ndim != axes + 3:
            raise ValueError(
                f"{name} takes query, key and value of (batch, {SIZES[axes - 1]}, heads, "
                f"head_dim), got query {tuple(query.shape)}."
            )
        return neighborhood_attention_generic(query, *args, **options)

    run.__name__ = run.__qualname__ = name
    return run


na1d, na2d, na3d = (_over(axes) for axes in (1, 2, 3))


def _table(rpb: Any, rule: Rule, heads: int) -> TableBias:
    """natten's table counts key - query on each axis, and ours the other way."""
    check_rpb(rpb, rule.kernel_size, heads)
    return TableBias(rpb.flip(tuple(range(1, rpb.ndim))).flatten(1).T)


def _additional(
    q: Tensor, k: Tensor, v: Tensor, keys: Any, values: Any
) -> tuple[Tensor, Tensor] | None:
    """Additional keys and values, heads first, as `attend` takes them."""
    if keys is None and values is None:
        return None
    if keys is None or values is None:
        given = "additional_keys" if values is None else "additional_values"
        raise ValueError(
            f"additional_keys and additional_values must be given together, got only {given}."
        )
    for name, x, own in (("additional_keys", keys, k), ("additional_values", values, v)):
        check_rank(name, x, 4, "batch, tokens, kv_heads, head_dim")
        if (x.shape[0], *x.shape[2:]) != (own.shape[0], own.shape[1], own.shape[3]):
            raise ValueError(
                f"{name} must be (batch, tokens, kv_heads, head_dim) = ({own.shape[0]}, tokens, "
                f"{own.shape[1]}, {own.shape[3]}), got {tuple(x.shape)}."
            )
    return keys.transpose(1, 2), values.transpose(1, 2)
