"""How the time and memory of a sliding window grow with length.

python benchmarks/run.py window-growth
"""

from __future__ import annotations

from foveal.bench import Case
from foveal.bench.attention import WINDOW, job, tensors
from foveal.bench.case import Job
from foveal.ops import attend

LENGTHS = {f"{length:,} tokens": length for length in (65_536, 16_384)}


def make(contender: str, run: str, device: str) -> Job:
    qkv = tensors(1, LENGTHS[contender], "float32", run, device)
    return job(lambda q, k, v: attend(q, k, v, WINDOW), qkv)


CASES = [
    Case(
        "window-growth",
        "window of 256 in four times the tokens; batch 1, 8 heads of 64, float32",
        tuple(LENGTHS),
        make,
        seconds=6.0,
    )
]
