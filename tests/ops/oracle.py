"""The formula of attend(), written apart from ops/: what a call must give, and whether it did.

Slow and plain: all pairs in float64, one by one where a Pyramid needs it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from foveal import patterns as P

# relative to the largest value: of outputs, and of gradients
TOLERANCE = {
    torch.float64: (1e-10, 1e-9),
    torch.float32: (3e-5, 2e-4),
    torch.float16: (4e-3, 1e-2),
    torch.bfloat16: (2.5e-2, 6e-2),
}
RMS = {torch.float64: 1e-10, torch.float32: 2e-5}
"""Relative root mean square of what outputs and gradients may differ by."""


@dataclass
class Case:
    """One call: tensors that may need a gradient by name, and the options."""

    word: str
    pattern: P.Pattern
    tensors: dict[str, Tensor]
    impl: str | None
    options: dict[str, Any] = field(default_factory=dict)
    default_dtype: torch.dtype = torch.float32
    return_lse: bool = True
    first: int = 0  # the place of the first query
    rule: tuple[Any, ...] = ()  # how a pair picks its row of a table, see `table_rows`

    def __str__(self) -> str:
        shapes = {name: (tuple(x.shape), x.dtype) for name, x in self.tensors.items()}
        options = {n: "..." if isinstance(x, Tensor) else x for n, x in self.options.items()}
        return (
            f"case {self.word}: {self.pattern}, impl={self.impl}, {shapes}, {options}, "
            f"rule {self.rule}, default dtype {self.default_dtype}"
        )


def readable(case: Case) -> Tensor:
    """(batch, heads, n_queries, n_keys) bool, pair by pair from `allows` of what is no pack."""
    q, k = case.tensors["q"], case.tensors["k"]
    (batch, heads, n, _), m = q.shape, k.shape[2]
    i, j = torch.arange(n).repeat_interleave(m) + case.first, torch.arange(m).repeat(n)
    own = case.pattern.heads or 1
    pairs = allowed_pairs(case.pattern, i, j).expand(own, n * m)
    found = pairs.view(1, own, n, m).expand(batch, heads, n, m)
    key_mask = case.options.get("key_mask")
    return found if key_mask is None else found & key_mask[:, None, None, :]


def allowed_pairs(pattern: P.Pattern, i: Tensor, j: Tensor) -> Tensor:
    """Which of the pairs there are; documents are told apart token by token."""
    if isinstance(pattern, P.Documents):
        at_q, at_k = document_of(pattern.lengths, i), document_of(pattern.lengths, j)
        return (at_q == at_k) & (at_q < len(pattern.lengths))
    if isinstance(pattern, P.Intersection):
        parts = [allowed_pairs(part, i, j) for part in pattern.parts]
        return torch.stack(torch.broadcast_tensors(*parts)).all(0)
    if not isinstance(pattern, P.Packed):
        return pattern.allows(i, j)
    keys, queries = pattern.lengths, pattern.query_lengths or pattern.lengths
    at_q, at_k = document_of(queries, i), document_of(keys, j)
    # queries are the last ones of their document
    late = torch.tensor([k - q for q, k in zip(queries, keys, strict=True)] + [0])[at_q]
    within = pattern.pattern.allows(i - _starts(queries)[at_q] + late, j - _starts(keys)[at_k])
    return within & (at_q == at_k) & (at_q < len(keys))


def document_of(lengths: tuple[int, ...], at: Tensor) -> Tensor:
    """The document of each token; after the last one comes padding."""
    found = [number for number, length in enumerate(lengths) for _ in range(length)]
    return torch.tensor([*found, len(lengths)])[at.clamp(max=len(found))]


def _starts(lengths: tuple[int, ...]) -> Tensor:
    return torch.tensor([sum(lengths[:number]) for number in range(len(lengths) + 1)])


def formula(case: Case, given: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(out, lse) in float64; given holds the tensors of the case in float64."""
    allowed = readable(case)
    group = case.tensors["q"].shape[1] // case.tensors["k"].shape[1]
    q, k, v = given["q"], given["k"], given["v"]
    unread = ~allowed.any(1).any(1)[:, None, :, None]
    k, v = k.masked_fill(unread, 0.0), v.masked_fill(unread, 0.0)
    k, v = (torch.stack([x] * group, 2).flatten(1, 2) for x in (k, v))
    scale = given.get("scale", case.options.get("scale", q.shape[-1] ** -0.5))
    if isinstance(case.pattern, P.Pyramid):
        logits = pyramid_logits(case, q, k, given.get("table"), scale)
    else:
        logits = bent(case, torch.einsum("bhid,bhjd->bhij", q, k) * scale)
        if "table" in given:
            rows = table_rows(case, q.shape[2], k.shape[2])
            logits = logits + given["table"][rows].permute(2, 0, 1)
    if "slopes" in given:
        far = torch.arange(q.shape[2])[:, None] + case.first - torch.arange(k.shape[2])
        logits = logits - given["slopes"][:, None, None] * far.abs()
    if "bias" in given:
        bias = given["bias"]
        allowed = allowed & (bias > -math.inf)
        logits = logits + bias.masked_fill(bias == -math.inf, 0.0)
    if "rows" in given:
        logits = logits + window_logits(case, given["rows"], given["columns"], k.shape[2])
    if "sinks" in given:  # one more key of each head, whose value is zero
        sinks = given["sinks"][None, :, None, None].expand(*logits.shape[:3], 1)
        logits, v = torch.cat([logits, sinks], 3), torch.cat([v, torch.zeros_like(v[:, :, :1])], 2)
        allowed = torch.cat([allowed.expand(*logits.shape[:3], -1), sinks > -math.inf], 3)
        logits = logits.masked_fill(~allowed, 0.0)
    some = allowed.any(-1, keepdim=True)
    if not logits.shape[3]:
        return logits @ v, logits.new_full(logits.shape[:3], -math.inf) + q.sum() * 0
    top = logits.detach().masked_fill(~allowed, -math.inf).amax(-1, keepdim=True)
    top = top.masked_fill(~some, 0.0)
    weights = torch.exp((logits - top).masked_fill(~allowed, -math.inf))
    total = weights.sum(-1, keepdim=True)
    out = weights @ v / total.masked_fill(~some, 1.0)
    lse = (total.masked_fill(~some, 1.0).log() + top).masked_fill(~some, -math.inf)
    return out, lse[..., 0]


def bent(case: Case, logits: Tensor) -> Tensor:
    """Logits under the soft-cap of the case."""
    cap = case.options.get("softcap")
    return logits if cap is None else cap * torch.tanh(logits / cap)


def listed_row(q_idx: Tensor, k_idx: Tensor) -> Tensor:
    """A rule of one's own: one of seven rows, whatever the offset."""
    return (3 * q_idx + 5 * k_idx) % 7


def in_documents(pattern: P.Packed, i: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
    """Places within the documents; queries are the last ones of theirs."""
    found, lengths = [], torch.tensor(pattern.lengths)
    for index, counts in ((i, pattern.query_lengths or pattern.lengths), (j, pattern.lengths)):
        own = document_of(counts, index)
        found.append(lengths[own] - torch.tensor(counts).cumsum(0)[own] + index)
    return found[0], found[1]


def t5_rows(offset: Tensor, buckets: int, far: int, both_ways: bool) -> Tensor:
    """The buckets of T5 for each offset, by Python's own logarithm."""

    def row(distance: int) -> int:
        count = buckets // 2 if both_ways else buckets
        behind = count if both_ways and distance < 0 else 0
        distance, near = abs(distance) if both_ways else max(distance, 0), count // 2
        if distance < near:
            return behind + distance
        share = math.log(distance / near) / math.log(far / near)
        return behind + min(count - 1, near + int(share * (count - near)))

    least = int(offset.min()) if offset.numel() else 0
    most = int(offset.max()) if offset.numel() else 0
    return torch.tensor([row(one) for one in range(least, most + 1)])[offset - least]


def table_rows(case: Case, n: int, m: int) -> Tensor:
    """(n_queries, n_keys): the row of a table that each pair gains."""
    i, j = torch.arange(n)[:, None] + case.first, torch.arange(m)[None]
    if isinstance(case.pattern, P.Packed):
        i, j = in_documents(case.pattern, i, j)
    kind, *sizes = case.rule
    if kind == "t5":
        return t5_rows(i - j, *sizes)
    if kind == "listed":
        return listed_row(i, j)
    if kind == "offset":
        return (i - j).clamp(-sizes[0], sizes[0]) + sizes[0]
    (_, width), kernel, dilation = sizes  # of a grid; pairs out of reach have any row
    places = ((i // width, j // width), (i % width, j % width))
    row = torch.zeros(n, m, dtype=torch.long)
    for (at, key), side, apart in zip(places, kernel, dilation, strict=True):
        step = torch.div(at - key, apart, rounding_mode="floor").clamp(1 - side, side - 1)
        row = row * (2 * side - 1) + step + side - 1
    return row


def window_logits(case: Case, rows: Tensor, columns: Tensor, n_keys: int) -> Tensor:
    """Every query's bias of every key by its place in the window of the query's block."""
    pattern = case.pattern
    assert isinstance(pattern, P.Halo)
    stride, width = pattern.query_stride, pattern.width
    across = -(-width // stride)
    i, j = torch.arange(rows.shape[2])[:, None] + case.first, torch.arange(n_keys)[None]
    places = ((i // across * stride, j // width), (i % across * stride, j % width))
    found = []
    for (at, key), block, halo, values in zip(
        places, pattern.block, pattern.halo, (rows, columns), strict=True
    ):
        place = (key - (at - at % block - halo)).clamp(0, block + 2 * halo - 1)
        found.append(values.gather(3, place.expand(*values.shape[:2], *place.shape)))
    return found[0] + found[1]


def pyramid_logits(
    case: Case, q: Tensor, k: Tensor, table: Tensor | None, scale: Tensor | float
) -> Tensor:
    """Logits of all pairs of tokens; keys and coarse queries are means over clusters."""
    pattern = case.pattern
    assert isinstance(pattern, P.Pyramid)
    (batch, heads, n, _), m = q.shape, k.shape[2]
    key_mask = case.options.get("key_mask", torch.ones(batch, m, dtype=torch.bool))
    query_mask = key_mask if n == m else torch.ones(batch, n, dtype=torch.bool)
    if pattern.queries == "coarse":  # in which padding counts as zeros
        q = q * query_mask[:, None, :, None]
    logits = torch.zeros(batch, heads, n, m, dtype=torch.float64)
    # of examples and heads
    own_scale = scale if isinstance(scale, float | int) or not scale.ndim else scale[..., 0, 0]
    for at_q, i in enumerate(range(case.first, case.first + n)):
        for level, cluster in pyramid_clusters(pattern, i, m):
            first = cluster << level
            query = q[:, :, at_q]
            if pattern.queries == "coarse" and level:
                start = i >> level << level
                query = q[:, :, start]
                if not pattern.causal:
                    query = cluster_mean(q, query_mask, i >> level, level)
            at = torch.einsum("bhd,bhd->bh", query, cluster_mean(k, key_mask, cluster, level))
            at = bent(case, at * own_scale)
            if table is not None:
                at = at + table[cluster - (i >> level) + 2 * pattern.block_size - 1]
            here = torch.zeros(n, m, dtype=torch.bool)
            here[at_q, first : first + (1 << level)] = True
            logits = torch.where(here, at[:, :, None, None], logits)
    return logits


def pyramid_clusters(pattern: P.Pyramid, i: int, m: int) -> list[tuple[int, int]]:
    """(level, cluster) of everything that the token at i meets."""
    found: dict[tuple[int, int], None] = {}
    for j in range(i + 1 if pattern.causal else m):
        level, a, b = 0, i // pattern.block_size, j // pattern.block_size
        while a // 2 != b // 2 if pattern.neighbors == "sibling" else abs(a - b) > 1:
            level, a, b = level + 1, a // 2, b // 2
        found[level, j >> level] = None
    return list(found)


def cluster_mean(x: Tensor, real: Tensor, cluster: int, level: int) -> Tensor:
    """Mean over the halves that hold a real token, each of them such a mean: (batch, heads, d)."""
    first = cluster << level
    if first >= x.shape[2]:
        return x.new_zeros(*x.shape[:2], x.shape[3])
    if level == 0:
        return x[:, :, cluster] * real[:, None, cluster, None]
    halves = [2 * cluster, 2 * cluster + 1]
    size = 1 << (level - 1)
    alive = [real[:, h * size : (h + 1) * size].any(1).double()[:, None, None] for h in halves]
    total = sum(
        a * cluster_mean(x, real, h, level - 1) for a, h in zip(alive, halves, strict=True)
    )
    return total / (alive[0] + alive[1]).clamp(min=1)


# -- comparing -----------------------------------------------------------------------------------


def compare(
    case: Case, got: tuple[Tensor, Tensor | None], want: tuple[Tensor, Tensor]
) -> list[str]:
    """Complaints about output and log-sum-exp."""
    found = differ(case, "out", got[0], want[0])
    if got[0].dtype != case.tensors["q"].dtype:
        found.append(f"out is {got[0].dtype}")
    if got[1] is not None:
        empty = want[1] == -math.inf
        if not torch.equal(got[1] == -math.inf, empty):
            return [*found, "lse is -inf for other queries than those without keys"]
        # where every logit is near the lowest number, how low it is is not promised
        low = (want[1] < -1e28) & (got[1].double() < -1e28)
        empty = empty | low
        found += differ(
            case, "lse", got[1].masked_fill(empty, 0.0), want[1].masked_fill(empty, 0.0)
        )
    return found


def differ(case: Case, name: str, got: Tensor | None, want: Tensor) -> list[str]:
    """A complaint where two tensors differ by more than rounding explains."""
    if got is None:
        return [f"{name} is None"] if want.any() else []
    kinds = {case.tensors["q"].dtype, got.dtype}
    limit = max(TOLERANCE[kind]["gradient" in name] for kind in kinds)
    # a logit is rounded to the precision of the sums, whatever the bias adds to it
    bias = case.tensors.get("bias", torch.zeros(1)).double()
    ordinary = bias[bias.abs() < 1e4]
    sums = torch.float64 if case.tensors["q"].dtype == torch.float64 else torch.float32
    limit += 8 * torch.finfo(sums).eps * float(ordinary.abs().amax()) if ordinary.numel() else 0
    scale = max(float(want.detach().abs().amax()), _floor(case, name)) if want.numel() else 1.0
    error = (got.detach().double() - want.detach()).abs()
    most = float(error.amax()) if want.numel() else 0.0
    found = [] if most <= limit * scale else [f"{name} differs by {most:.3g} of {scale:.3g}"]
    if got.dtype in RMS and len(kinds) == 1:
        limit = RMS[got.dtype] + limit - TOLERANCE[got.dtype]["gradient" in name]
        norm = float(want.detach().square().mean().sqrt()) if want.numel() else 1.0
        rms = float(error.square().mean().sqrt()) if want.numel() else 0.0
        small = 3 if want.numel() > 8 else 2  # of so few a mean is no better than the largest
        if not rms <= limit * max(norm, _floor(case, name) / small):
            found.append(f"{name} differs by {rms:.3g} of {norm:.3g} (root mean square)")
    return found


def _floor(case: Case, name: str) -> float:
    """What counts as small: terms of about one that may cancel, many in a broadcast bias."""
    shared = case.tensors.get(name.rpartition(" ")[2])
    if shared is None or not name.endswith(("bias", "table", "sinks", "slopes", "scale")):
        # gradients of queries and keys grow with the scale
        scale = abs(float(case.options.get("scale") or 0)) * math.sqrt(case.tensors["q"].shape[3])
        return 0.3 * max(1.0, scale)
    q, k = case.tensors["q"], case.tensors["k"]
    pairs = q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2]
    return 0.3 * math.sqrt(pairs / max(1, shared.numel()))
