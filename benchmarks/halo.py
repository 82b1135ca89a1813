"""HaloAttention beside halonet-pytorch: the same layer, weights and input.

pip install --no-deps -r peers.txt
python benchmarks/run.py halo-layer
"""

from __future__ import annotations

import os

import torch

from foveal.bench import Case
from foveal.bench.case import Job
from foveal.patterns import Halo

SIZES = {"dim": 512, "block_size": 8, "halo_size": 4, "dim_head": 64, "heads": 8}
BATCH, SIDE = 4, 64


def make(contender: str, run: str, device: str) -> Job:
    torch.manual_seed(0)
    if contender == "halonet-pytorch":
        from halonet_pytorch import HaloAttention

        impl = ""
    else:
        from foveal.layers import HaloAttention

        impl = "" if contender == "attend" else contender  # as attend chooses
    layer = HaloAttention(**SIZES).to(device)
    training = run == "training"
    x = torch.randn(BATCH, SIZES["dim"], SIDE, SIDE, device=device, requires_grad=training)

    def job() -> None:
        os.environ["FOVEAL_IMPL"] = impl
        with torch.set_grad_enabled(training):
            out = layer(x)
        if training:
            out.sum().backward()
        os.environ["FOVEAL_IMPL"] = ""

    return job


def flops() -> dict[str, float]:
    """Projections of q, k, v and out, then the two products of the attention."""
    tokens, inner = BATCH * SIDE * SIDE, SIZES["heads"] * SIZES["dim_head"]
    projections = 2.0 * tokens * SIZES["dim"] * 4 * inner
    core = 4.0 * BATCH * inner * Halo(SIDE, 8, 4).num_pairs(SIDE * SIDE)
    return {"forward": projections + core, "training": 3 * projections + 3.5 * core}


CASES = [
    Case(
        "halo-layer",
        f"HaloAttention, {SIZES}, {BATCH} images of {SIDE} x {SIDE}, float32",
        ("native", "tiled", "halonet-pytorch"),
        make,
        flops=flops(),
        seconds=8.0,
    )
]
