"""Neighbourhoods of a clip of voxels, beside SDPA under a mask: python benchmarks/run.py voxels"""

from __future__ import annotations

import math

from torch.nn.functional import scaled_dot_product_attention

from foveal.bench import Case
from foveal.bench.attention import flops, job, tensors
from foveal.bench.case import Job
from foveal.ops import attend
from foveal.patterns import Blocks, Neighborhood

VOXELS = (16, 24, 24)
AROUND = {
    "7 x 7 x 7": Neighborhood(VOXELS, 7),
    "stride 4, kernel 8": Neighborhood(VOXELS, 8, stride=4, border="shift"),
    "Swin 4 x 8 x 8": Blocks((4, 8, 8), size=VOXELS, shift=(2, 4, 4)),
}


def voxels(contender: str, run: str, device: str) -> Job:
    """As attend picks it, or dense; the mask costs SDPA the same whatever it allows."""
    length = math.prod(VOXELS)
    qkv = tensors(1, length, "float32", run, device)
    if contender != "masked SDPA":
        return job(lambda q, k, v: attend(q, k, v, AROUND[contender]), qkv)
    mask = AROUND["7 x 7 x 7"].mask(length, device=device)
    return job(lambda q, k, v: scaled_dot_product_attention(q, k, v, attn_mask=mask), qkv)


CASES = [
    Case(
        "voxels",
        "neighbourhoods of 16 x 24 x 24 voxels; 8 heads of 64, float32",
        (*AROUND, "masked SDPA"),
        voxels,
        flops=flops(AROUND["7 x 7 x 7"], math.prod(VOXELS), 1),
        devices=("cpu",),
        seconds=40.0,
    ),
]
