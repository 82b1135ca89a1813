"""How near the kernel comes to the floor of the machine: its products and its exponentials.

    python benchmarks/floor.py [--rounds 15] [--threads 2] [--impl native]

The floor of a pattern is the time of its matrix products at the best rate of a large product, and
of its exponentials at the best rate of torch.exp in cache, both measured in turns with it: two
products and one exponential a pair forward, five and one backward (weights are computed again).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch

from foveal.bench.attention import DIM, HALO, HEADS, WINDOW, job, tensors
from foveal.bench.measure import turns
from foveal.ops import attend

PATTERNS = {"halo-core": (HALO, 4096), "window-8192": (WINDOW, 8192)}
SIZE, CACHED = 1536, 1 << 17  # of a square product, and numbers that stay in cache


def probes() -> dict[str, Callable[[], object]]:
    """Jobs whose rates are the machine's."""
    x, y = torch.randn(2, SIZE, SIZE)
    product, small = torch.empty(SIZE, SIZE), torch.randn(CACHED)
    exponentials = torch.empty(CACHED)

    def exponentiate() -> None:
        for _ in range(32):
            torch.exp(small, out=exponentials)

    return {"products": lambda: torch.mm(x, y, out=product), "exponentials": exponentiate}


def attention(name: str, run: str, impl: str) -> Callable[[], object]:
    """attend() of a pattern, forward or forward and backward."""
    pattern, length = PATTERNS[name]
    qkv = tensors(1, length, "float32", run, "cpu")
    return job(lambda q, k, v: attend(q, k, v, pattern, impl=impl), qkv)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--impl", default="native")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    jobs = probes()
    for name in PATTERNS:
        for run in ("forward", "training"):
            jobs[f"{name} {run}"] = attention(name, run, args.impl)
    for warm in jobs.values():
        warm()
    best = {name: min(taken) for name, taken in turns(jobs, args.rounds).items()}
    flops, exps = 2 * SIZE**3 / best["products"], 32 * CACHED / best["exponentials"]
    print(f"products {flops / 1e9:.1f} GFLOP/s, exponentials {exps / 1e9:.2f} G/s")
    print(f"{'':24}{'ms':>8}{'floor':>8}{'share':>8}{'of products':>13}")
    for name, (pattern, length) in PATTERNS.items():
        pairs = HEADS * pattern.num_pairs(length)
        forward, training = best[f"{name} forward"], best[f"{name} training"]
        runs = {"forward": (forward, 2), "backward": (training - forward, 5)}
        for run, (seconds, products) in {**runs, "training": (training, 7)}.items():
            multiply = 2 * DIM * products * pairs / flops
            floor = multiply + pairs * (2 if run == "training" else 1) / exps
            shares = f"{floor / seconds:8.2f}{multiply / seconds:13.2f}"
            print(f"{name + ' ' + run:24}{seconds * 1e3:8.1f}{floor * 1e3:8.1f}{shares}")


if __name__ == "__main__":
    main()
