"""Each compiled kernel beside plain PyTorch on the device at hand: what attend() asks before it
takes one, for every family of patterns and every dtype, and whether it would take it.

python benchmarks/gpu_check.py
"""

from __future__ import annotations

import sys
import warnings

import torch
from gpu_cases import PATTERNS

import foveal
from foveal import patterns as P
from foveal.ops import flex, triton

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
HALOS = (P.Halo(64, 8, 4), P.Halo(56, 7, 3), P.Halo((40, 24), (4, 8), 2), P.Halo(64, 8, 4, 2))


def said(right: bool, told: list[warnings.WarningMessage]) -> str:
    return "right" if right else f"WRONG: {told[-1].message if told else 'not trusted'}"


def main() -> int:
    """Print a line a kernel; 1 if one is wrong."""
    device, wrong = "cuda:0", 0
    patterns = {name: (pattern, length) for name, (_, pattern, length) in PATTERNS.items()}
    patterns["pyramid"] = (P.Pyramid(64, causal=True), 4096)
    for name, (pattern, length) in patterns.items():
        for dtype in DTYPES:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                right = flex.trusted(pattern, length, (64, 64), dtype, device)
            wrong += not right
            taken = foveal.explain(pattern, length, device, dtype).impl
            print(f"flex    {name:<14} {dtype!s:<15} {said(right, told)}; attend takes {taken}")
    for halo in HALOS:
        for dtype in DTYPES:
            for dim in (32, 64, 128):
                sizes = (halo.block, halo.halo, halo.query_stride, dim, dim)
                with warnings.catch_warnings(record=True) as told:
                    warnings.simplefilter("always")
                    right = triton.trusted(*sizes, dtype, device)
                wrong += not right
                print(f"triton  {halo} {dim} {dtype!s:<15} {said(right, told)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
