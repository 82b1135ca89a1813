"""Which implementation computes a call, and why."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from foveal.patterns import Full, Pattern

IMPLS = ("reference", "dense", "tiled", "flex")

# Rates of one core pair, measured by benchmarks/cost_model.py; only their ratios matter.
DENSE_FLOPS = 130e9
TILED_FLOPS = 80e9
CHUNK_SECONDS = 60e-6


@dataclass(frozen=True)
class Explanation:
    """What attend() would do for a pattern and length, and what it would cost.

    Attributes:
        impl: the implementation chosen.
        reason: why, in one sentence.
        pairs: (query, key) pairs that the pattern allows, per head.
        visited: pairs that the implementation computes, per head.
        flops: multiply-adds times two of both matrix products, forward, for all heads.
        score_bytes: bytes of attention scores alive at one time.
        alternatives: the other implementations and what each would mean.
    """

    impl: str
    reason: str
    length: int
    pairs: int
    visited: int
    flops: int
    score_bytes: int
    alternatives: dict[str, str]

    def __str__(self) -> str:
        dense = max(1, self.length * self.length)
        lines = [
            f"impl         {self.impl}: {self.reason}",
            f"pairs        {self.pairs:,} allowed of {dense:,} ({self.pairs / dense:.2%})",
            f"visited      {self.visited:,}",
            f"forward      {self.flops / 1e9:.3g} GFLOP",
            f"score memory {self.score_bytes / 2**20:.3g} MiB at a time",
        ]
        lines += [f"{name:<12} {text}" for name, text in self.alternatives.items()]
        return "\n".join(lines)


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
) -> Explanation:
    """Which implementation attend() picks for a self-attention, why, and what it costs.

    Args:
        pattern: who attends to whom.
        length: tokens in the sequence.
        device, dtype, requires_grad: of the query, key and value tensors.
        batch, heads, head_dim: their other sizes.

    Raises:
        ValueError: the length makes no sense for the pattern.
    """
    device_type = torch.device(device).type
    pattern.check_length(length)
    impl, reason = choose(pattern, length, device_type, batch * heads, head_dim)
    one = pattern.per_head()[0]
    dense = pattern.num_queries(length) * length
    visited = dense if impl in ("reference", "dense") else one.tiles(length).visited
    times = batch * heads
    chunk = min(visited, 1 << 19) if impl == "tiled" else min(visited, 1 << 20)
    others = {
        "reference": "materialises every score; the definition, for tests",
        "dense": f"scaled_dot_product_attention under a mask: {dense:,} pairs a head",
        "tiled": f"the tile plan in plain PyTorch: {one.tiles(length).visited:,} pairs a head",
        "flex": "compiled FlexAttention on CUDA"
        if device_type == "cuda"
        else "needs CUDA (no backward pass on CPU)",
    }
    others.pop(impl)
    return Explanation(
        impl,
        reason,
        length,
        pattern.num_pairs(length) // (pattern.heads or 1),
        visited,
        4 * visited * head_dim * times,
        chunk * (8 if dtype == torch.float64 else 4),
        others,
    )


def choose(
    pattern: Pattern, length: int, device: str, heads: int, head_dim: int
) -> tuple[str, str]:
    """(impl, reason) for a self-attention of `length` tokens over batch * heads heads."""
    if isinstance(pattern, Full):
        return "dense", "the pattern is dense attention"
    return _choose_sparse(pattern.per_head()[0], length, device, heads, head_dim)


@functools.lru_cache(maxsize=1024)
def _choose_sparse(
    pattern: Pattern, length: int, device: str, heads: int, head_dim: int
) -> tuple[str, str]:
    dense = pattern.num_queries(length) * length
    if length <= 64:
        return "dense", f"{length} tokens are one tile"
    if device == "cuda" and length >= 1024:
        return "flex", "a compiled block-sparse kernel on CUDA"
    plan = pattern.tiles(length)
    per_pair = 4 * head_dim * heads
    chunks = sum(
        max(1, heads * group.num_tiles * group.tile_q * group.tile_k / (1 << 19))
        for group in plan.groups
    )
    tiled_time = plan.visited * per_pair / TILED_FLOPS + chunks * CHUNK_SECONDS
    dense_time = dense * per_pair / DENSE_FLOPS + CHUNK_SECONDS
    share = f"{plan.visited:,} of {dense:,} pairs visited"
    if tiled_time < dense_time:
        return "tiled", f"{share}, estimated {dense_time / tiled_time:.1f} times dense speed"
    return "dense", f"{share}: one dense kernel is faster at this length"
