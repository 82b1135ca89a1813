"""Which implementation computes a call, and why.

FOVEAL_IMPL in the environment names an implementation to prefer wherever it can do the call.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from foveal.common.memo import remember
from foveal.ops import native, triton
from foveal.ops.tiled import CHUNK
from foveal.patterns import Full, Pattern, Pyramid
from foveal.patterns.pyramid_tiles import _PyramidTiles
from foveal.patterns.subclasses import is_a
from foveal.patterns.tiling import Tiling

IMPLS = ("reference", "dense", "tiled", "native", "triton", "flex")


# -- what a call would take ---------------------------------------------------------------------

# FLOP/s of two cores with AVX-512, and the cost of a step, from benchmarks/run.py. Only the ratios
# matter: they decide where one implementation overtakes another.
RATES = {
    torch.float32: {"dense": 140e9, "tiled": 80e9, "native": 160e9},
    torch.bfloat16: {"dense": 150e9, "tiled": 110e9, "native": 250e9},
}
CALL_SECONDS = {"dense": 30e-6, "tiled": 60e-6, "native": 60e-6}
FULL_NATIVE = (128, 8192)  # tokens; the kernel beats SDPA there, and a plan costs little
CHUNK_SECONDS = 150e-6


@dataclass(frozen=True)
class Work:
    """A self-attention: sizes that its cost depends on."""

    pattern: Pattern  # of one head
    length: int
    heads: int  # times batch
    head_dim: int
    dtype: torch.dtype

    @property
    def dense_pairs(self) -> int:
        return self.length * self.pattern.num_queries(self.length)

    @property
    def visited(self) -> int:
        return _tiling(self.pattern, self.length).visited

    def flops(self, pairs: int) -> int:
        return 4 * pairs * self.head_dim * self.heads

    def seconds(self, impl: str) -> float:
        """Estimated time of the forward pass on the machine of RATES."""
        rate = RATES.get(self.dtype, RATES[torch.float32])[impl]
        pairs = self.dense_pairs if impl == "dense" else self.visited
        steps = CALL_SECONDS[impl]
        if impl == "tiled":
            groups = _tiling(self.pattern, self.length).groups
            sizes = (g.num_tiles * g.tile_q * g.tile_k * self.heads for g in groups)
            chunk = CHUNK["cpu"] / self.dtype.itemsize
            steps += sum(max(1.0, size / chunk) for size in sizes) * CHUNK_SECONDS
        return self.flops(pairs) / rate + steps


def _tiling(pattern: Pattern, length: int) -> Tiling:
    """The plan that is computed; that of a Pyramid reads the keys of all levels side by side."""
    if is_a(pattern, Pyramid):
        levels = _PyramidTiles(pattern, length, length)
        return levels.tiles(levels.num_joined_keys)
    return pattern.tiles(length)


def choose(
    pattern: Pattern,
    length: int,
    device: str,
    heads: int,
    head_dim: int,
    dtype: torch.dtype = torch.float32,
    has_native: bool = False,
) -> tuple[str, str]:
    """(impl, reason) for a self-attention of `length` tokens over batch * heads heads, no bias."""
    if is_a(pattern, Full):
        if has_native and device == "cpu" and FULL_NATIVE[0] <= length <= FULL_NATIVE[1]:
            return "native", "the pattern is dense attention, and this kernel the faster one"
        return "dense", "the pattern is dense attention"
    if is_a(pattern, Pyramid):
        if device == "cuda":
            return "flex", "a compiled block-sparse kernel over the pooled levels side by side"
        engine = "native" if has_native else "tiled"
        return engine, "keys are pooled into levels, which only a tile plan knows"
    work = Work(pattern.per_head()[0], length, heads, head_dim, dtype)
    return _choose(work, device, has_native)


def choose_windowed(has_native: bool, has_triton: bool) -> tuple[str, str]:
    """(impl, reason) for a call with a WindowBias, which dense and flex would have to expand."""
    why = "relative positions are added inside its tiles"
    if has_triton:
        return "triton", f"a kernel for halo attention on CUDA; {why}"
    return "native" if has_native else "tiled", why


@remember(entries=1024)
def _choose(work: Work, device: str, has_native: bool) -> tuple[str, str]:
    if work.length <= 64:
        return "dense", f"{work.length} tokens are one tile"
    if device == "cuda" and work.length >= 1024:
        return "flex", "a compiled block-sparse kernel on CUDA"
    engine = "native" if has_native else "tiled"
    share = f"{work.visited:,} of {work.dense_pairs:,} pairs visited"
    gain = work.seconds("dense") / work.seconds(engine)
    if gain > 1:
        return engine, f"{share}, estimated {gain:.1f} times dense speed"
    return "dense", f"{share}: one dense kernel is faster at this length"


def forced() -> str | None:
    """The implementation that FOVEAL_IMPL names, or None.

    Raises:
        ValueError: there is no such implementation.
    """
    name = os.environ.get("FOVEAL_IMPL")
    if name and name not in IMPLS:
        raise ValueError(f"FOVEAL_IMPL must be one of {', '.join(IMPLS)} or empty, got {name!r}.")
    return name or None


# what torch.compiler.assume_constant_result does, which would import the compiler (a second)
forced._dynamo_marked_constant = True  # type: ignore[attr-defined]


# -- telling the user ---------------------------------------------------------------------------


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
    window_bias: bool = False,
) -> Explanation:
    """Which implementation attend() picks for a self-attention, why, and what it costs.

    Nothing is compiled or computed: gains are estimated from the pairs that each visits.

    Args:
        pattern: who attends to whom.
        length: tokens in the sequence.
        device, dtype, requires_grad: of the query, key and value tensors.
        batch, heads, head_dim: their other sizes.
        window_bias: the call has a WindowBias (relative positions of a Halo).

    Raises:
        ValueError: the length makes no sense for the pattern.
    """
    kind = torch.device(device).type
    pattern.check_length(length)
    work = Work(pattern.per_head()[0], length, batch * heads, head_dim, dtype)
    lacks = {
        "native": native.why_not(kind, dtype),
        "triton": triton.why_not(kind, dtype, pattern, head_dim),
    }
    has_native, has_triton = (reason is None for reason in lacks.values())
    if window_bias:
        impl, reason = choose_windowed(has_native, has_triton and kind == "cuda")
    else:
        impl, reason = choose(pattern, length, kind, work.heads, head_dim, dtype, has_native)
    if name := forced():
        impl, reason = name, "FOVEAL_IMPL names it, for calls that it can do"
    visited = work.dense_pairs if impl in ("reference", "dense") else work.visited
    others = _alternatives(work, kind, impl, lacks)
    return Explanation(
        impl,
        reason,
        length,
        pattern.num_pairs(length) // (pattern.heads or 1),
        visited,
        work.flops(visited),
        _score_bytes(work, impl, visited),
        others,
    )


def _score_bytes(work: Work, impl: str, visited: int) -> int:
    if impl == "tiled":
        return min(visited * work.heads * work.dtype.itemsize, CHUNK["cpu"])
    at_once = 2 * 64 * 64 * torch.get_num_threads() if impl == "native" else 1 << 20
    return min(visited, at_once) * (8 if work.dtype == torch.float64 else 4)


def _alternatives(
    work: Work, device: str, impl: str, lacks: dict[str, str | None]
) -> dict[str, str]:
    def beside(name: str) -> str:
        """Estimated speed relative to the choice; both estimates are for CPU."""
        if device != "cpu" or impl not in CALL_SECONDS:
            return ""
        return f"; estimated {work.seconds(impl) / work.seconds(name):.2f} of the speed"

    dense, visited = f"{work.dense_pairs:,} pairs a head", f"{work.visited:,} pairs a head"
    kernel = f"the tile plan in a C++ kernel: {visited}{beside('native')}"

    def unless(reason: str | None) -> str:
        return f"; {reason}" if reason else ""

    others = {
        "reference": "materialises every score; the definition, for tests",
        "dense": f"scaled_dot_product_attention under a mask: {dense}{beside('dense')}",
        "tiled": f"the tile plan in plain PyTorch: {visited}{beside('tiled')}",
        "native": f"{kernel}{unless(lacks['native'])}",
        "triton": f"a Triton kernel for halo attention{unless(lacks['triton'])}",
        "flex": "compiled FlexAttention on CUDA"
        if device == "cuda"
        else "needs CUDA (no backward pass on CPU)",
    }
    others.pop(impl)
    return others
