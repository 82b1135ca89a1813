"""A SepViT training step beside vit-pytorch: the same configuration.

pip install --no-deps -r peers.txt
python benchmarks/run.py sepvit-step
"""

from __future__ import annotations

import torch
from peers import peer

from foveal.bench import Case
from foveal.bench.case import Job

CONFIG = {"num_classes": 1000, "dim": 32, "depth": (1, 2, 6, 2), "heads": (1, 2, 4, 8)}


def make(contender: str, run: str, device: str) -> Job:
    torch.manual_seed(0)
    if contender == "vit-pytorch":
        model = peer("vit_pytorch.sep_vit").SepViT(**CONFIG).to(device)
    else:
        from foveal.models import SepViT

        model = SepViT(**CONFIG).to(device)
    x = torch.randn(8, 3, 224, 224, device=device)

    def job() -> None:
        model(x).sum().backward()
        model.zero_grad()

    return job


CASES = [
    Case(
        "sepvit-step",
        "training step of SepViT, dim 32, depths (1, 2, 6, 2), 8 images of 224 x 224, float32",
        ("foveal", "vit-pytorch"),
        make,
        runs=("training",),
        seconds=5.0,
    )
]
