"""Sliding-window attention beside dense causal attention, and its growth with length.

    python benchmarks/window.py [--threads 2]

Prints ratios of medians taken in turn in one run, and the peak memory of the longest case in a
process of its own. Absolute times depend on the machine; the ratios are what the docs quote.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable

import torch
from timing import medians, peak_memory
from torch.nn.functional import scaled_dot_product_attention

import foveal
from foveal import patterns as P

WINDOW = P.SlidingWindow(256)


def tensors(length: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(1, 8, length, 64, requires_grad=True) for _ in range(3)]


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return scaled_dot_product_attention(q, k, v, is_causal=True)


def window(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return foveal.attend(q, k, v, WINDOW)


def forward(call: Callable, qkv: list[torch.Tensor]) -> None:
    with torch.no_grad():
        call(*qkv)


def training(call: Callable, qkv: list[torch.Tensor]) -> None:
    call(*qkv).sum().backward()


def beside_dense(rounds: int) -> None:
    qkv = tensors(8192)
    for name, run in (("forward", forward), ("forward + backward", training)):
        took = medians(
            {"dense": lambda r=run: r(dense, qkv), "window": lambda r=run: r(window, qkv)}, rounds
        )
        print(
            f"8,192 tokens, {name}: {took['dense'] / took['window']:.1f} times dense causal speed"
        )


def growth(rounds: int) -> None:
    short, long = tensors(16_384), tensors(65_536)
    took = medians(
        {"short": lambda: training(window, short), "long": lambda: training(window, long)}, rounds
    )
    print(
        f"16,384 -> 65,536 tokens, forward + backward: time x {took['long'] / took['short']:.2f}"
    )


def peak() -> None:
    training(window, tensors(65_536))
    held = peak_memory() / 1e9
    print(f"65,536 tokens, forward + backward: peak memory {held:.2f} GB, torch included")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peak", action="store_true", help="only the memory measurement")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak:
        peak()
        return
    print(f"torch {torch.__version__}, {args.threads} threads, 8 heads of 64, float32, {WINDOW}")
    beside_dense(args.rounds)
    growth(args.rounds)
    subprocess.run([sys.executable, __file__, "--peak"], check=True)


if __name__ == "__main__":
    main()
