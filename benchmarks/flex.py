"""attend() beside compiled FlexAttention with the same analytic block mask.

python benchmarks/run.py flex

On CPU FlexAttention has no backward pass (torch 2.13), so only the forward pass is timed there.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from foveal.bench import Case
from foveal.bench.attention import DALLE, HALO, WINDOW, flops, job, tensors
from foveal.bench.case import Job
from foveal.ops import attend
from foveal.ops.choose import IMPLS
from foveal.ops.flex.layout import Layout, layout
from foveal.patterns import Pattern

BLOCK = {"cpu": 64, "cuda": 128}
TILES = "flex, compiled, in tiles"


def in_tiles(compiled: Callable, plan: Layout) -> Callable:
    """FlexAttention on tokens in the order of the tile plan, moved there and back."""

    def attention(*qkv: torch.Tensor) -> torch.Tensor:
        moved = (x.index_select(2, plan.order) for x in qkv)
        return compiled(*moved, block_mask=plan.block_mask).index_select(2, plan.place)

    return attention


def case(
    name: str, title: str, pattern: Pattern, length: int, batch: int, tiles: bool = False
) -> Case:
    def make(contender: str, run: str, device: str) -> Job:
        qkv = tensors(batch, length, "float32", run, device)
        if contender in ("attend", *IMPLS):
            impl = None if contender == "attend" else contender
            return job(lambda q, k, v: attend(q, k, v, pattern, impl=impl), qkv)
        from torch.nn.attention.flex_attention import flex_attention

        compiled = torch.compile(flex_attention)
        if contender == TILES:
            return job(in_tiles(compiled, layout(pattern, length, BLOCK[device], device)), qkv)
        mask = pattern.block_mask(length, BLOCK[device], device)
        return job(lambda q, k, v: compiled(q, k, v, block_mask=mask), qkv)

    return Case(
        name,
        f"{title}, beside compiled FlexAttention; batch {batch}, 8 heads of 64, float32",
        ("native", "tiled", *((TILES,) if tiles else ()), "flex, compiled"),
        make,
        runs=("forward",),
        flops={"forward": flops(pattern, length, batch)["forward"]},
    )


CASES = [
    case("flex-window", "window of 256 in 8,192 tokens", WINDOW, 8192, 1),
    case(
        "flex-halo",
        "64 x 64 pixels, blocks of 8, halo of 4, raster order",
        HALO,
        4096,
        1,
        tiles=True,
    ),
    case("flex-dalle-conv-5", "256 words and 32 x 32 tokens", DALLE[5], 1280, 4),
]
