"""attend() on a GPU beside dense flash attention and FlexAttention, in bfloat16 and float32.

python benchmarks/run.py gpu- --device cuda --output benchmarks/results/gpu
"""

from __future__ import annotations

from foveal.bench import Case
from foveal.bench.attention import Attention, dense, flops, job, tensors, traffic
from foveal.bench.case import Job
from foveal.ops import attend
from foveal.patterns import (
    Axial,
    Blocks,
    BlockSparse,
    Full,
    Halo,
    Neighborhood,
    Pattern,
    Pyramid,
    SlidingWindow,
    TextImage,
)

CONTENDERS = ("attend", "triton", "flex", "tiled", "dense")
BATCH = 4

PATTERNS: dict[str, tuple[str, Pattern, int]] = {
    "window": ("a causal window of 256 in 16,384 tokens", SlidingWindow(256), 16384),
    "blocks": ("blocks of 256 and the one before", Blocks(256, causal=True, lookback=1), 16384),
    "halo": ("128 x 128 pixels, blocks of 8, halo of 4", Halo(128, 8, 4), 16384),
    "neighborhood": ("128 x 128 pixels, windows of 13", Neighborhood(128, 13), 16384),
    "axial": ("rows of 128 x 128 pixels", Axial(128, "row"), 16384),
    "longformer": ("Longformer's blocks of 64", BlockSparse.longformer(16384, 64), 16384),
    "text-conv": (
        "256 words, 32 x 32 image tokens, convolution of 11",
        TextImage(256, Neighborhood(32, 11, causal="corner")),
        1280,
    ),
    "full": ("dense causal attention over 4,096 tokens", Full(causal=True), 4096),
}


def attention(contender: str, pattern: Pattern, length: int, device: str) -> Attention:
    if contender == "dense":
        return dense(pattern, length, device)
    impl = None if contender == "attend" else contender
    return lambda q, k, v: attend(q, k, v, pattern, impl=impl)


def case(name: str, title: str, pattern: Pattern, length: int, dtype: str) -> Case:
    def make(contender: str, run: str, device: str) -> Job:
        qkv = tensors(BATCH, length, dtype, run, device)
        return job(attention(contender, pattern, length, device), qkv)

    return Case(
        f"gpu-{name}-{'bf16' if dtype == 'bfloat16' else 'f32'}",
        f"{title}; batch {BATCH}, 8 heads of 64, {dtype}, beside flash attention",
        CONTENDERS,
        make,
        flops=flops(pattern, length, BATCH),
        bytes=traffic(length, BATCH, dtype),
        dtype=dtype,
        devices=("cuda",),
    )


def make_pyramid(contender: str, run: str, device: str) -> Job:
    length = 65536
    qkv = tensors(1, length, "bfloat16", run, device)
    pattern = Full(causal=True) if contender == "dense" else Pyramid(64, causal=True)
    return job(attention(contender, pattern, length, device), qkv)


CASES = [
    *(
        case(name, *sizes, dtype)
        for name, sizes in PATTERNS.items()
        for dtype in ("bfloat16", "float32")
    ),
    Case(
        "gpu-pyramid-bf16",
        "a causal pyramid over 65,536 tokens beside dense causal flash attention; batch 1, 8 "
        "heads of 64, bfloat16",
        ("attend", "flex", "tiled", "dense"),
        make_pyramid,
        dtype="bfloat16",
        devices=("cuda",),
    ),
]
