"""A SepViT training step beside vit-pytorch: the same configuration in one run.

pip install --no-deps -r peers.txt
python benchmarks/sepvit.py [--threads 2] [--rounds 5]
"""

from __future__ import annotations

import argparse

import torch
from peers import peer
from timing import medians

CONFIG = {"num_classes": 1000, "dim": 32, "depth": (1, 2, 6, 2), "heads": (1, 2, 4, 8)}


def step(model: torch.nn.Module, x: torch.Tensor) -> None:
    model(x).sum().backward()
    model.zero_grad()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    from foveal.models import SepViT

    torch.manual_seed(0)
    theirs = peer("vit_pytorch.sep_vit").SepViT(**CONFIG)
    ours = SepViT(**CONFIG)
    x = torch.randn(8, 3, 224, 224)
    took = medians({"ours": lambda: step(ours, x), "theirs": lambda: step(theirs, x)}, args.rounds)
    print(f"torch {torch.__version__}, {args.threads} threads, float32, batch 8 of 224 x 224")
    print(f"training step: {took['theirs'] / took['ours']:.2f} times as fast as vit-pytorch's")


if __name__ == "__main__":
    main()
