"""Pooled patterns over many ranks: near clusters are exchanged, a summary of each rank gathered.

Clusters that lie within one rank are pooled there, and the ranks exchange those that are read
across borders. The larger ones every rank pools from the largest that lie within one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveal.ops.bias import MASKED, TableBias
from foveal.ops.drop import ByPlace
from foveal.ops.implementations import IMPLEMENTATIONS, Planned
from foveal.ops.logits import with_sinks
from foveal.ops.merge import merge
from foveal.ops.pooling import count_real, pool_keys, pool_queries
from foveal.ops.work import work_of
from foveal.parallel.levels import Layout, Local, layout_of
from foveal.parallel.moving import exchange, gather
from foveal.parallel.ranks import Ranks
from foveal.parallel.shares import kept_by, share
from foveal.patterns import Pattern
from foveal.patterns.gathered import Gathered
from foveal.patterns.needs import listed

_DIGIT, _DIGITS = 256, 4
"""Counts travel as digits that every floating dtype holds exactly."""


@dataclass(frozen=True)
class Clusters:
    """What stands for clusters of tokens.

    parts: (batch, heads, clusters, features) each, of any heads and features, of one dtype.
    count: (batch, clusters) int32, the real tokens in each.
    """

    parts: tuple[Tensor, ...]
    count: Tensor

    def __getitem__(self, places: Tensor | slice) -> Clusters:
        return Clusters(tuple(x[:, :, places] for x in self.parts), self.count[:, places])

    def rows(self) -> Tensor:
        """(clusters, numbers): what goes to another rank."""
        parts = [x.permute(2, 0, 1, 3).flatten(1) for x in self.parts]
        digits = [self.count // _DIGIT**power % _DIGIT for power in range(_DIGITS)]
        return torch.cat([*parts, *(digit.T.to(parts[0].dtype) for digit in digits)], 1)

    def of_rows(self, rows: Tensor) -> Clusters:
        """Rows from other ranks, as clusters with parts like these."""
        shapes = [(x.shape[0], x.shape[1], x.shape[3]) for x in self.parts]
        widths = [a * b * c for a, b, c in shapes]
        *parts, digits = rows.split([*widths, _DIGITS * len(self.count)], 1)
        powers = torch.tensor([_DIGIT**power for power in range(_DIGITS)], device=rows.device)
        numbers = digits.detach().unflatten(1, (_DIGITS, -1)).round().long()
        return Clusters(
            tuple(
                part.unflatten(1, shape).permute(1, 2, 0, 3)
                for part, shape in zip(parts, shapes, strict=True)
            ),
            (numbers * powers[:, None]).sum(1).T.to(self.count.dtype),
        )


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    ranks: Ranks,
    sizes: tuple[int, ...],
    bias: TableBias | None,
    key_mask: Tensor | None,
    options: dict[str, Any],
) -> Any:
    """`foveal.parallel.attend` for a pattern that pools its keys; arguments as there.

    Raises:
        ValueError: a rank without tokens.
    """
    if min(sizes) == 0:
        raise ValueError(f"every rank needs a token under {pattern}, got lengths={sizes}.")
    local = _localized(pattern, sizes, ranks)
    keys, queries = _clusters(q, k, v, pattern, local, ranks, key_mask)
    coarse = local.layout.plan.coarse
    sinks = options.get("sinks")
    given = {**options, "sinks": None} if coarse else options
    calls = zip(queries, local.calls, strict=True)
    found = [_call(query, keys, one, bias, given) for query, one in calls]
    out, lse = found[0]
    if coarse:
        out, lse = with_sinks(*_merged_upwards(found, local.layout, ranks.rank), sinks)
    return (out, lse) if options.get("return_lse") else out


def _localized(pattern: Pattern, sizes: tuple[int, ...], ranks: Ranks) -> Local:
    kept, key = kept_by(ranks), (pattern.cache_key(), sizes)
    found: Local | None = kept.find(key)
    if found is None:
        layout = layout_of(pattern, sizes)
        found = layout.local(ranks.rank, lambda needs: share(needs, layout.borders, ranks))
        kept.keep(key, found)
    return found


def _clusters(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    local: Local,
    ranks: Ranks,
    key_mask: Tensor | None,
) -> tuple[Clusters, list[Tensor]]:
    """Keys (with values) in the order of the local plan, and the queries of each local call."""
    layout, shared = local.layout, local.share
    plan, levels = layout.plan, layout.within + 1
    pooled = pool_keys(k, v, key_mask, levels)
    real = q.new_ones(q.shape[0], q.shape[2], dtype=torch.bool) if key_mask is None else key_mask
    clusters = slice(0, sum(pooled.sizes))
    count = torch.cat(count_real(real, levels), 1)
    own = Clusters((pooled.k[:, :, clusters], pooled.v[:, :, clusters]), count)
    queries = [q]
    if plan.coarse:
        queries = pool_queries(q, key_mask, levels, first=pattern.is_causal)
    foreign = own.of_rows(
        exchange(own[shared.send.to(q.device)].rows(), ranks, shared.sent, shared.received)
    )
    mine = own[shared.own.to(q.device)]
    pieces = [foreign[slice(0, shared.before)], mine, foreign[slice(shared.before, None)]]
    if levels < plan.levels:
        top = own[slice(pooled.starts[-1], None)]
        top = Clusters((*top.parts, *((queries[-1],) if plan.coarse else ())), top.count)
        whole = top.of_rows(gather(top.rows(), ranks, layout.sizes_at(layout.within)))
        above = plan.levels - layout.within
        larger = pool_keys(whole.parts[0], whole.parts[1], None, above, counts=whole.count)
        later = slice(larger.sizes[0], sum(larger.sizes))
        counted = torch.cat(count_real(whole.count, above), 1)[:, later]
        pieces.append(Clusters((larger.k[:, :, later], larger.v[:, :, later]), counted))
        if plan.coarse:
            found = pool_queries(whole.parts[2], whole.count > 0, above, first=pattern.is_causal)
            for level, one in enumerate(found[1:], start=levels):
                low, high = layout.clusters(ranks.rank, level)
                queries.append(one[:, :, low:high])
    return _ordered(pieces, local, q), queries


def _ordered(pieces: list[Clusters], local: Local, q: Tensor) -> Clusters:
    """Clusters as the local plan counts them; the last of the joined ones is empty."""
    none = Clusters(
        tuple(x.new_zeros(*x.shape[:2], 1, x.shape[3]) for x in pieces[0].parts),
        pieces[0].count.new_zeros(len(q), 1),
    )
    pieces = [*pieces, none]
    parts = zip(*(one.parts for one in pieces), strict=True)
    joined = Clusters(
        tuple(torch.cat(part, 2) for part in parts),
        torch.cat([one.count.expand(len(q), -1) for one in pieces], 1),
    )
    order = local.order.to(q.device)
    return Clusters(
        tuple(x.index_select(2, order) for x in joined.parts),
        joined.count.index_select(1, order),
    )


def _call(
    q: Tensor, keys: Clusters, pattern: Gathered, bias: TableBias | None, options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """One call of an engine, in which each key counts as the tokens that it stands for."""
    k, v = keys.parts
    wide = torch.promote_types(q.dtype, torch.float32)
    gain = torch.where(keys.count > 0, keys.count.to(wide).log(), MASKED)
    scale, dropout = options.get("scale"), options.get("dropout_p", 0.0)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    table = None if bias is None else bias.settled(pattern, q.shape[1]).by_head()
    impl = options.get("impl")
    if isinstance(dropout, ByPlace):
        places = torch.arange(pattern.first, pattern.first + pattern.count, device="cpu")
        dropout, impl = dropout.at(places, listed(pattern.runs)), "tiled"
    engine = _engine(q, k, v, pattern, bias, impl)
    shaping = {"sinks": options.get("sinks"), "softcap": options.get("softcap")}
    return engine(q, k, v, pattern, table, gain, scale, dropout, **shaping)


def _engine(
    q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, bias: TableBias | None, impl: str | None
) -> Any:
    """What computes a call: the one that is named, or the native kernel where it can.

    Raises:
        ValueError: what is named works from no tile plan, or cannot do the call.
    """
    work = work_of(q, k, v, pattern, None, None, 0.0, True)
    for name in (impl,) if impl else ("native", "tiled"):
        one = IMPLEMENTATIONS.get(name)
        if not isinstance(one, Planned) or name not in ("native", "tiled"):
            raise ValueError(f"impl must be 'native' or 'tiled' for pooled keys, got {impl=!r}.")
        why = "it has no tables of pooled keys" if bias and name == "native" else one.lacks(work)
        if why is None and one.ready(work):
            return one.engine
    raise ValueError(f"impl={impl!r} cannot do this call: {why}; use impl='tiled'.")


def _merged_upwards(
    found: list[tuple[Tensor, Tensor]], layout: Layout, rank: int
) -> tuple[Tensor, Tensor]:
    """Merge the levels, the coarsest first; each cluster hands its result to its own halves."""
    out, lse = found[-1]
    for level in range(len(found) - 2, -1, -1):
        low, high = layout.clusters(rank, level)
        skip = low - 2 * layout.clusters(rank, level + 1)[0]
        part = slice(skip, skip + high - low)
        above = out.repeat_interleave(2, 2)[:, :, part], lse.repeat_interleave(2, 2)[:, :, part]
        out, lse = merge([found[level], above])
    return out, lse
