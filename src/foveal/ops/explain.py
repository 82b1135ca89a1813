"""explain(): what attend() would do, why, and at what cost."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from foveal.common import html
from foveal.common.checks import as_bool, as_int
from foveal.ops import costs, offset
from foveal.ops.checks import check_sizes
from foveal.ops.choose import pick
from foveal.ops.costs import dense_pairs, visited_pairs
from foveal.ops.dense import MOST_PAIRS, written_out
from foveal.ops.implementations import IMPLEMENTATIONS
from foveal.ops.tiled import CHUNK
from foveal.ops.work import Work, table_kind
from foveal.patterns import Pattern
from foveal.patterns.tabled import OwnRows


@dataclass(frozen=True)
class Explanation:
    """What attend() would do for a call, and what it would cost.

    Attributes:
        impl: the implementation chosen.
        reason: why, in one sentence.
        length: keys.
        num_queries: queries.
        pairs: (query, key) pairs that the pattern allows, per head.
        visited: pairs that the implementation computes, per head.
        flops: multiply-adds times two of both matrix products, forward, for all heads.
        score_bytes: bytes of attention scores alive at one time.
        alternatives: the other implementations and what each would mean.
        logits: what shapes the logits: a table of biases, a soft-cap, sinks.
    """

    impl: str
    reason: str
    length: int
    pairs: int
    visited: int
    flops: int
    score_bytes: int
    alternatives: dict[str, str]
    num_queries: int = 0
    logits: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join(f"{name:<12} {text}" for name, text in self._rows().items())

    def _rows(self) -> dict[str, str]:
        dense = self._dense
        return {
            "impl": f"{self.impl}: {self.reason}",
            "pairs": f"{self.pairs:,} allowed of {dense:,} ({self.pairs / dense:.2%})",
            "visited": f"{self.visited:,}",
            "forward": f"{self.flops / 1e9:.3g} GFLOP",
            "score memory": f"{self.score_bytes / 2**20:.3g} MiB at a time",
            **({"logits": ", ".join(self.logits)} if self.logits else {}),
            **self.alternatives,
        }

    @property
    def _dense(self) -> int:
        """Pairs of dense attention."""
        return max(1, self.length * self.num_queries)

    def _repr_html_(self) -> str:
        """What a notebook shows: the choice, its cost, and the other implementations."""
        rows, dense = self._rows(), self._dense
        cells = [
            ("pairs allowed", f"{self.pairs:,} of {dense:,}", html.Share(self.pairs / dense)),
            ("pairs computed", rows["visited"], html.Share(self.visited / dense)),
            *((name, rows[name], None) for name in ("forward", "score memory")),
        ]
        if self.logits:
            cells.append(("logits", rows["logits"], None))
        others = html.facts(self.alternatives, title="instead of it")
        title = f"attend() over {self.length:,} keys: {self.impl}"
        return html.table(cells, title=title, note=self.reason) + others


def explain(
    pattern: Pattern,
    length: int,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    requires_grad: bool = True,
    *,
    batch: int = 1,
    heads: int = 8,
    head_dim: int = 64,
    window_bias: bool = False,
    kv_heads: int | None = None,
    num_queries: int | None = None,
    head_dim_v: int | None = None,
    bias: tuple[int, ...] | None = None,
    pyramid_bias: bool = False,
    key_mask: bool = False,
    dropout: bool = False,
    return_lse: bool = False,
    sinks: bool = False,
    softcap: bool = False,
    q_offset: int = 0,
    table_bias: bool = False,
) -> Explanation:
    """Which implementation attend() picks for a call, why, and what it costs.

    Nothing is compiled or computed: gains are estimated from the pairs that each visits. That a
    kernel does not compile, or is wrong on a device, shows when it is first wanted.

    Args:
        pattern: who attends to whom.
        length: keys; tokens in the sequence.
        device, dtype, requires_grad: of the query, key and value tensors.
        batch, heads, head_dim: their other sizes. A pattern with layouts for each head says itself
            how many there are.
        window_bias: the call has a WindowBias (relative positions of a Halo).
        kv_heads: heads of keys and values; as many as of queries when None.
        num_queries: queries; as many as the pattern has for its keys when None.
        head_dim_v: features of values; head_dim when None.
        bias: the shape of a tensor that is added to the logits, which needs a gradient as q does.
        pyramid_bias: as table_bias, by the name that a TableBias has for a Pyramid.
        key_mask, dropout, return_lse, sinks, softcap: whether the call has them.
        q_offset: the first of `num_queries` queries, as in `attend`; -1: they are the last.
        table_bias: the call has a TableBias by the pattern's own rule, or alibi.

    Raises:
        ValueError: sizes do not fit each other or the pattern.
    """
    length = as_int("length", length, 0)
    pattern.check_length(length)
    queries = pattern.num_queries(length) if num_queries is None else num_queries
    queries = as_int("num_queries", queries, 0)
    heads, keys = pattern.heads or heads, length
    if not offset.is_none(q_offset):
        first = offset.resolve(pattern, queries, length, q_offset)
        if first or queries != pattern.num_queries(length):
            pattern, low, high = offset.part_of(pattern, first, queries, length)
            keys = high - low
    q = (batch, heads, queries, as_int("head_dim", head_dim, 1))
    k = (batch, kv_heads or heads, keys, head_dim)
    flags = {"window_bias": window_bias, "pyramid_bias": pyramid_bias, "key_mask": key_mask}
    flags |= {"dropout": dropout, "return_lse": return_lse, "requires_grad": requires_grad}
    flags |= {"sinks": sinks, "softcap": softcap, "table_bias": table_bias}
    flags = {name: as_bool(name, value) for name, value in flags.items()}
    kind = "window" if window_bias else None
    if table_bias or pyramid_bias:
        kind = table_kind(pattern if pattern.biased_by_table else OwnRows(pattern))
    work = Work(
        pattern,
        q,
        k,
        (*k[:3], head_dim if head_dim_v is None else as_int("head_dim_v", head_dim_v, 1)),
        dtype,
        torch.device(device),
        kind if bias is None else "tensor",
        () if bias is None else (1,) * (4 - len(bias)) + tuple(bias),
        flags["requires_grad"] and (kind is not None or bias is not None),
        flags["key_mask"],
        flags["dropout"],
        flags["return_lse"],
        flags["requires_grad"],
        threads=torch.get_num_threads(),
        sinks=flags["sinks"],
        softcap=flags["softcap"],
    )
    check_sizes(work)
    if offset.wants_plan(work, None):
        part, low, high = offset.part_of(pattern, 0, queries, length)
        k, v = (*k[:2], high - low, k[3]), (*k[:2], high - low, work.v[3])
        work = work._replace(pattern=part, k=k, v=v)
    return _explanation(work, length)


def _explanation(work: Work, length: int) -> Explanation:
    impl, reason = pick(work, compiled=False)
    whole = impl in ("reference", "dense")
    visited = dense_pairs(work) if whole else visited_pairs(work.pattern, work.q[2], work.k[2])
    return Explanation(
        impl,
        reason,
        length,
        _allowed_pairs(work),
        visited,
        costs.flops(work, visited),
        _score_bytes(work, impl, visited),
        _alternatives(work, impl),
        work.q[2],
        _shaping(work),
    )


def _shaping(work: Work) -> tuple[str, ...]:
    """What shapes the logits, in words."""
    said = {
        "a row of a table a pair": work.bias in ("offsets", "table"),
        "soft-capped": work.softcap,
        "a sink a head": work.sinks,
    }
    return tuple([words for words, holds in said.items() if holds])


def _allowed_pairs(work: Work) -> int:
    """Pairs that the pattern allows, the mean over heads that differ."""
    if work.square and work.q[2] == work.pattern.num_queries(work.k[2]):
        return work.pattern.num_pairs(work.k[2]) // (work.pattern.heads or 1)
    keys = torch.arange(work.k[2], device="cpu")[None]
    queries = torch.arange(work.q[2], device="cpu")[:, None]
    parts = queries.split(max(1, (1 << 24) // max(1, work.k[2])))
    pairs = sum(int(work.pattern.allows(rows, keys).sum()) for rows in parts)
    return pairs // (work.pattern.heads or 1)


def _score_bytes(work: Work, impl: str, visited: int) -> int:
    size = max(4, work.dtype.itemsize)
    if impl == "reference":
        return work.heads * visited * size
    if impl == "tiled":
        return min(visited * work.heads * size, CHUNK["cpu"])
    if impl == "dense" and not work.plain:
        return min(written_out(work), MOST_PAIRS) * size
    at_once = 2 * 64 * 64 * torch.get_num_threads() if impl == "native" else 1 << 20
    return min(visited * work.heads, at_once) * size


def _alternatives(work: Work, impl: str) -> dict[str, str]:
    """What each other implementation would mean, and why it refuses where it does."""
    dense = f"{dense_pairs(work):,} pairs a head"
    visited = ""
    if work.square:
        visited = f": {visited_pairs(work.pattern, work.q[2], work.k[2]):,} pairs a head"
    means = {
        "reference": "materialises every score; the definition, for tests",
        "dense": f"scaled_dot_product_attention under a mask: {dense}",
        "tiled": f"the tile plan in plain PyTorch{visited}",
        "native": f"the tile plan in a C++ kernel{visited}",
        "triton": "a Triton kernel for halo attention",
        "flex": "compiled FlexAttention on CUDA",
    }
    found = {}
    for name, text in means.items():
        reason = IMPLEMENTATIONS[name].refuses(work)
        if name != impl:
            found[name] = f"{text}; {reason}" if reason else text + _beside(work, impl, name)
    return found


def _beside(work: Work, impl: str, name: str) -> str:
    """Estimated speed relative to the choice; estimates are for CPUs and calls without extras."""
    if work.device.type != "cpu" or not {impl, name} <= costs.CALL_SECONDS.keys():
        return ""
    share = costs.seconds(work, impl) / costs.seconds(work, name)
    told = f"{share:.2f}" if share >= 0.01 else "less than 0.01"
    return f"; estimated {told} of the speed"
