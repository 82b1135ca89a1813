"""explain_selected(): what attend_selected() would do, why, and at what cost."""

from __future__ import annotations

import torch

from foveal.common.checks import as_bool, as_int
from foveal.ops.explain import Explanation
from foveal.ops.native import why_not
from foveal.ops.selected.attend import ENGINES, first_of, pick
from foveal.ops.tiled import CHUNK

REASONS = {
    "native": "the C++ kernel reads the blocks of each tile in place",
    "tiled": "plain PyTorch gathers the blocks of a chunk of tiles",
    "reference": "FOVEAL_IMPL names it",
}
MEANS = {
    "native": "a C++ kernel that reads the blocks of each tile in place",
    "tiled": "plain PyTorch that gathers the blocks of a chunk of tiles",
    "reference": "materialises every score; the definition, for tests",
}


def explain_selected(
    length: int,
    block_size: int,
    count: int,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    causal: bool = True,
    query_block: int | None = None,
    num_queries: int | None = None,
    q_offset: int = 0,
    batch: int = 1,
    heads: int = 8,
    head_dim: int = 64,
    head_dim_v: int | None = None,
) -> Explanation:
    """Which implementation attend_selected() picks for a call, why, and what it costs.

    The blocks are not known before they are chosen: pairs are those of `count` different blocks
    for each tile, as far as there are so many, and a call reads as many at most.

    Args:
        length: keys.
        block_size, count: keys in a block, and blocks that a tile of queries names.
        device, dtype: of the query, key and value tensors.
        causal, query_block, q_offset: as in `attend_selected`.
        num_queries: queries; as many as keys when None.
        batch, heads, head_dim, head_dim_v: the other sizes of the queries, and of the values.

    Raises:
        ValueError: a size is none, or sizes do not fit each other.
    """
    length = as_int("length", length, 0)
    size, count = as_int("block_size", block_size, 1), as_int("count", count, 0)
    tile = size if query_block is None else as_int("query_block", query_block, 1)
    queries = length if num_queries is None else as_int("num_queries", num_queries, 0)
    first = first_of(q_offset, queries, length)
    most = min(count * size, length)
    causal = as_bool("causal", causal)
    pairs = visited = queries * most
    if causal:
        pairs = _rising(first + queries, most) - _rising(first, most)
        ends = torch.arange(tile, queries + tile, tile, device="cpu").clamp(max=queries)
        widths = ends - torch.arange(0, queries, tile, device="cpu")
        visited = int((widths * (first + ends).clamp(max=most)).sum())
    kind = torch.device(device).type
    impl, units = pick(kind, dtype, compiled=False), batch * heads
    if impl == "reference":
        visited = queries * length
    features = head_dim + (head_dim if head_dim_v is None else head_dim_v)
    at_once = {"native": 2 * 64 * 64 * torch.get_num_threads()}
    at_once["tiled"] = CHUNK.get(kind, 1 << 26) // 4
    scores = min(visited * units, at_once.get(impl, visited * units))
    return Explanation(
        impl,
        REASONS[impl],
        length,
        pairs,
        visited,
        2 * visited * units * features,
        scores * max(4, dtype.itemsize),
        {name: _means(name, kind, dtype) for name in ENGINES if name != impl},
        queries,
    )


def _rising(end: int, most: int) -> int:
    """Pairs of the first `end` tokens, of which token i reads min(i + 1, most)."""
    short = min(end, most)
    return short * (short + 1) // 2 + (end - short) * most


def _means(name: str, device: str, dtype: torch.dtype) -> str:
    reason = why_not(device, dtype) if name == "native" else None
    return f"{MEANS[name]}; {reason}" if reason else MEANS[name]
