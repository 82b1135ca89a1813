"""Estimated time of a call in each implementation: only the ratios matter.

Rates are those of the processor's class, not measured on the machine at hand: what is chosen, and
so the last bits of a result, is then the same on every machine of a class and in every run.
"""

from __future__ import annotations

import torch

from foveal.common.memo import remember
from foveal.common.processor import ProcessorClass, processor_class
from foveal.ops.dense import is_causal_or_all, written_out
from foveal.ops.tiled import CHUNK
from foveal.ops.work import Work
from foveal.patterns import Full, Pattern
from foveal.patterns.subclasses import is_a
from foveal.patterns.tiling import Tiling

Rates = dict[str, float]
GIGA = 1e9

# FLOP/s of a core: AVX-512 from benchmarks/run.py, AVX2 and generic from benchmarks/short.py
# (Zen 3), aarch64 as if it were generic until somebody measures it
FLOAT32: dict[ProcessorClass, Rates] = {
    "avx512+bf16": {"dense": 70, "tiled": 40, "native": 85},
    "avx512": {"dense": 70, "tiled": 40, "native": 85},
    "avx2": {"dense": 60, "tiled": 30, "native": 64},
    "generic": {"dense": 12, "tiled": 8, "native": 12},
    "aarch64": {"dense": 12, "tiled": 8, "native": 12},
}
BFLOAT16: Rates = {"dense": 75, "tiled": 55, "native": 125}  # where the processor multiplies it

CallSeconds = dict[str, tuple[float, float]]
CALL_SECONDS: CallSeconds = {
    "dense": (20e-6, 110e-6),
    "tiled": (300e-6, 1500e-6),
    "native": (80e-6, 330e-6),
}
"""What a call costs whatever its size: forward, and forward and backward."""

CALL_SECONDS_AVX512: CallSeconds = {
    "dense": (30e-6, 110e-6),
    "tiled": (60e-6, 400e-6),
    "native": (60e-6, 250e-6),
}
"""The same beside the rates of AVX-512, which include what short products lose in SDPA there."""

CHUNK_SECONDS = 150e-6
WRITTEN_SECONDS = 3e-9
"""Of a number of a mask or of scores that is written out."""

TRAINING = 3.5
"""Products of forward and backward, in units of the forward pass."""

FULL_NATIVE = (128, 8192)
"""Tokens between which the kernel may compute plain dense attention: its plan costs little."""


def may_be_native(work: Work) -> bool:
    """Whether the kernel may compute this plain dense attention."""
    least, most = FULL_NATIVE
    if not (_is_wide() or work.pattern.is_causal):  # SDPA is as fast there as the kernel
        least = 512
    return work.device.type == "cpu" and least <= work.k[2] <= most


def _is_wide() -> bool:
    return processor_class() in ("avx512+bf16", "avx512")


def dense_pairs(work: Work) -> int:
    """Pairs of all queries and keys, of a head."""
    return work.q[2] * work.k[2]


@remember(entries=1024)
def visited_pairs(pattern: Pattern, n_queries: int, n_keys: int) -> int:
    """Pairs that a tile plan computes, of a head: the mean over heads that differ."""
    heads = pattern.per_head()
    found = sum(tiling(one, n_queries, n_keys).visited for one in set(heads))
    return found if len(set(heads)) == 1 else _mean_visited(heads, n_queries, n_keys)


def _mean_visited(heads: tuple[Pattern, ...], n_queries: int, n_keys: int) -> int:
    return sum(tiling(one, n_queries, n_keys).visited for one in heads) // len(heads)


def tiling(pattern: Pattern, n_queries: int, n_keys: int) -> Tiling:
    """The plan that is computed; of pooled keys it reads those of all levels side by side."""
    if pattern.pools:
        levels = pattern.joined(n_queries, n_keys)
        return levels.tiles(levels.num_joined_keys)
    return pattern.tiles(n_keys)


def flops(work: Work, pairs: int) -> int:
    """Multiply-adds times two of both products, forward, for all heads."""
    return 2 * pairs * (work.q[3] + work.v[3]) * work.heads


def seconds(work: Work, name: str) -> float:
    """Estimated time on a CPU of the class at hand: forward, and backward if it is wanted."""
    planned = name != "dense"
    pairs = visited_pairs(work.pattern, work.q[2], work.k[2]) if planned else _sdpa_pairs(work)
    total = flops(work, pairs) / _rate(work, name) * (TRAINING if work.requires_grad else 1.0)
    total += _call_seconds(work, name)
    if name == "tiled":
        total += _chunks(work) * CHUNK_SECONDS * (3 if work.requires_grad else 1)
    if name == "dense" and not work.plain:
        total += written_out(work) * WRITTEN_SECONDS
    if planned and work.pattern.heads is not None:
        total += (work.q[1] - 1) * _call_seconds(work, name)
    return total


def _call_seconds(work: Work, name: str) -> float:
    return (CALL_SECONDS_AVX512 if _is_wide() else CALL_SECONDS)[name][work.requires_grad]


def _sdpa_pairs(work: Work) -> int:
    """Pairs that SDPA computes: when it knows that they are causal, it skips blocks."""
    pairs = dense_pairs(work)
    causal = is_a(work.pattern, Full) and work.pattern.causal and is_causal_or_all(work)
    return pairs * 3 // 4 if causal and work.q[2] >= 768 else pairs


def _rate(work: Work, name: str) -> float:
    kind = processor_class()
    rates = FLOAT32[kind]
    if work.dtype == torch.bfloat16 and kind == "avx512+bf16":
        rates = BFLOAT16
    rate = rates[name] * GIGA / (2 if work.dtype == torch.float64 else 1)
    return rate * max(1, work.threads)


def _chunks(work: Work) -> float:
    """Chunks of tiles that pass through the buffers, of all heads."""
    heads, total = work.pattern.per_head(), 0.0
    share = work.heads / len(heads)
    for one in heads:
        for group in tiling(one, work.q[2], work.k[2]).groups:
            size = group.num_tiles * group.tile_q * group.tile_k * share
            total += max(1.0, size * max(4, work.dtype.itemsize) / CHUNK["cpu"])
    return total
