"""Which form a call takes when it is lowered."""

from __future__ import annotations

import torch
from torch import Tensor

from foveal.common.symbols import known
from foveal.ops.bias import TableBias, WindowBias
from foveal.ops.checks import as_scale, as_softcap, fold_scale
from foveal.ops.lowered.bands import band_plan, banded
from foveal.ops.lowered.call import Lowered, Part
from foveal.ops.lowered.dense import dense
from foveal.ops.lowered.levels import by_levels
from foveal.ops.lowered.state import (
    NotLoweredError,
    are_equal,
    has_symbols,
    least,
    most,
    planned,
)
from foveal.ops.lowered.tiles import TilePlan, tile_plan, tiled
from foveal.ops.table import Alibi
from foveal.patterns import Pattern
from foveal.patterns.sizes import MOST

WORTH = 2
"""A plan is taken where it visits fewer than one in so many of the pairs."""


def attend_lowered(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    bias: Tensor | WindowBias | TableBias | Alibi | None = None,
    key_mask: Tensor | None = None,
    scale: float | Tensor | None = None,
    sinks: Tensor | None = None,
    softcap: float | None = None,
    return_lse: bool = False,
    dropout_p: float = 0.0,
) -> Part:
    """`attend` in plain operators of torch: arguments as in `attend`, sizes may be symbols.

    Returns:
        out (batch, heads, n_queries, head_dim_v), and the log-sum-exp (batch, heads, n_queries)
        if it is asked for.

    Raises:
        NotLoweredError: there is no such form, as the message says.
    """
    if dropout_p:
        raise NotLoweredError(f"{dropout_p=} draws at random; call eval() first")
    _check_range(pattern, k.shape[2])
    softcap = as_softcap(softcap)
    factor = q.shape[-1] ** -0.5 if scale is None else 1.0
    if isinstance(scale, Tensor):
        q = fold_scale(q, scale)
    elif scale is not None:
        factor = float(as_scale(scale))
    if isinstance(bias, TableBias):
        bias = bias.settled(pattern, q.shape[1])
    elif isinstance(bias, Tensor) and bias.ndim < 4:
        bias = bias[(None,) * (4 - bias.ndim)]
    if key_mask is not None:  # what is not real may be NaN, and zero times NaN is NaN
        k, v = (x.masked_fill(~key_mask[:, None, :, None], 0.0) for x in (k, v))
    call = Lowered(q, k, v, pattern, bias, key_mask, factor, sinks, softcap, return_lse)
    if pattern.pools:
        return by_levels(call)
    call = _grouped(call)
    if pattern.heads is not None:
        return _by_head(call)
    return _by_plan(call)


def _check_range(pattern: Pattern, length: int | torch.SymInt) -> None:
    """Whether the pattern takes all lengths that a symbol may be, as `attend` asks of each.

    Raises:
        NotLoweredError: it does not.
    """
    if known(length) or has_symbols(pattern):
        return
    longest = most(length)
    for one in (least(length), MOST if longest is None else longest):
        try:
            pattern.check_length(one)
        except ValueError as error:
            ends = f"{least(length)} to {'any' if longest is None else longest}"
            raise NotLoweredError(
                f"{pattern} over {ends} tokens ({str(error).rstrip('.')}); bound the length when "
                'tracing: Dim("length", min=..., max=...)'
            ) from error


def _grouped(call: Lowered) -> Lowered:
    """Keys and values with a head for each of the queries."""
    groups = call.q.shape[1] // call.k.shape[1]
    if groups == 1:
        return call
    k, v = (x.repeat_interleave(groups, 1) for x in (call.k, call.v))
    return call._replace(k=k, v=v)


def _by_head(call: Lowered) -> Part:
    """Heads with layouts of their own, one after the other."""
    bias = call.bias
    if not (bias is None or isinstance(bias, Tensor)):
        raise NotLoweredError(f"{type(bias).__name__} over the heads of {call.pattern}")
    parts = []
    patterns = planned(("heads", call.pattern), call.pattern.per_head)  # some hold tensors
    for head, pattern in enumerate(patterns):
        own = slice(head, head + 1)
        part = bias if bias is None or bias.shape[1] == 1 else bias[:, own]
        q, k, v = call.q[:, own], call.k[:, own], call.v[:, own]
        sinks = None if call.sinks is None else call.sinks[own]
        alone = call._replace(q=q, k=k, v=v, pattern=pattern, bias=part, sinks=sinks)
        parts.append(_by_plan(alone))
    outs, lses = zip(*parts, strict=True)
    return torch.cat(outs, 1), torch.cat(lses, 1) if call.lse else None


def _by_plan(call: Lowered) -> Part:
    pattern, longest = call.pattern, most(call.k.shape[2])
    if pattern.reads_all or has_symbols(pattern):
        return dense(call._replace(unread=not pattern.reads_all))
    call = call._replace(unread=not _is_all_read(call, longest))
    if are_equal(call.q.shape[2], call.k.shape[2]):
        plan = planned(("band", pattern, longest), lambda: band_plan(pattern, longest))
        if plan is not None and (longest is None or WORTH * len(plan[1]) * plan[0] <= longest):
            return banded(call, *plan)
    if longest is not None and _has_all_queries(call):
        found = planned(("tiles", pattern, longest), lambda: _tiles(pattern, longest))
        if found is not None:
            return tiled(call, found, longest)
    return dense(call)


def _tiles(pattern: Pattern, longest: int) -> TilePlan | None:
    """The plan of the longest sequence, if it is worth it."""
    queries = pattern.num_queries(longest)
    if WORTH * pattern.tiles(longest).visited > queries * longest:
        return None
    return tile_plan(pattern, longest)


def _is_all_read(call: Lowered, longest: int | None) -> bool:
    """Whether every key is read by the query of its own position, at least."""
    pattern = call.pattern
    count = pattern.period if longest is None else longest
    if count is None or not are_equal(call.q.shape[2], call.k.shape[2]):
        return False

    def reads_own() -> bool:
        own = torch.arange(count, device="cpu")
        return bool(pattern.allows(own, own).all())

    return planned(("own", pattern, count), reads_own)


def _has_all_queries(call: Lowered) -> bool:
    """Whether there are as many queries as the pattern has."""
    n, m = call.q.shape[2], call.k.shape[2]
    if known(n, m):
        return bool(n == call.pattern.num_queries(m))
    return are_equal(n, m) and call.pattern.num_queries(most(m) or 1) == (most(m) or 1)
