"""attend() beside scaled_dot_product_attention under the same mask, at short lengths.

    python benchmarks/short.py [--lengths 128,256,512,1024] [--shapes 1x1,2x4,8x8] [--seconds 0.15]
        [--json benchmarks/results/short/avx2.json]

Prints how many times as fast as SDPA attend() is on this machine, in rounds in which both take
turns, each first in every other one, the least time of each counting; and what it chose. Both are
called by a name of their own. No figure should be below 0.95. A lower class of processor is
emulated by ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 FOVEAL_NATIVE=generic (or avx2,
AVX2 and avx2 on AVX-512). docs/performance.md shows what --json has written there.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

import foveal
from foveal import attend
from foveal import patterns as P
from foveal.bench import machine
from foveal.common.processor import processor_class

DIM = 64


def families(n: int) -> dict[str, P.Pattern]:
    """The shipped kinds of patterns at n tokens."""
    side = 1 << (int(math.log2(n)) // 2)
    image = (side, n // side)
    text = n // 4
    under = (side, (n - text) // side)
    return {
        "full": P.Full(),
        "full causal": P.Full(causal=True),
        "window 64": P.SlidingWindow(64),
        "window 256": P.SlidingWindow(256),
        "window 64, both sides": P.SlidingWindow(64, causal=False),
        "blocks": P.Blocks(64, True, 1),
        "halo": P.Halo(image, 8, 3),
        "neighborhood": P.Neighborhood(image, 5),
        "convolution": P.Neighborhood(image, 5, causal="raster"),
        "axial row": P.Axial(image, "row", True),
        "axial column": P.Axial(image, "column", True),
        "block-sparse": P.BlockSparse.bigbird(n, 16, seed=0),
        "strided": P.Strided(side),
        "fixed": P.Fixed(side, 4),
        "text-image": P.TextImage(text, P.Neighborhood(under, 5, causal="raster")),
        "text-image axial": P.TextImage(text, P.Axial(under, "row", True)),
    }


def least(jobs: list[Callable[[], object]], seconds: float) -> list[float]:
    """The least seconds of each job, in turns for about so long, at least six rounds."""
    best = [math.inf] * len(jobs)
    places = list(range(len(jobs)))
    for job in jobs * 3:  # from the third call on a call is told by a glance
        job()
    rounds, end = 0, time.perf_counter() + seconds
    while rounds < 6 or time.perf_counter() < end:
        rounds += 1
        places.reverse()  # what comes after the faster job finds other things in the caches
        for place in places:
            start = time.perf_counter()
            jobs[place]()
            best[place] = min(best[place], time.perf_counter() - start)
    return best


def ratio(pattern: P.Pattern, shape: tuple[int, int], n: int, grad: bool, seconds: float) -> float:
    """How many times as fast as SDPA attend() is."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(*shape, n, DIM, requires_grad=grad) for _ in "qkv")
    weight = torch.randn(*shape, n, DIM)
    mask = pattern.mask(n)
    options = {"attn_mask": mask}
    if isinstance(pattern, P.Full):
        options = {"is_causal": pattern.causal}

    def job(call: Callable[[], Tensor]) -> Callable[[], object]:
        return (lambda: torch.autograd.grad(call(), (q, k, v), weight)) if grad else call

    theirs, ours = least(
        [job(lambda: sdpa(q, k, v, **options)), job(lambda: attend(q, k, v, pattern))],
        seconds,
    )
    return theirs / ours


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--lengths", default="128,256,512,1024")
    parser.add_argument("--shapes", default="1x1,1x8,4x8", help="batch x heads")
    parser.add_argument("--families", default="", help="only those whose name holds this")
    parser.add_argument("--seconds", type=float, default=0.1, help="for each figure")
    parser.add_argument("--json", type=Path, help="file for the figures, too")
    options = parser.parse_args()
    print(f"{processor_class()}, {torch.get_num_threads()} threads, float32, heads of {DIM}")
    shapes = [tuple(map(int, one.split("x"))) for one in options.shapes.split(",")]
    head = "  ".join(f"{b}x{h} fwd train" for b, h in shapes)
    print(f"{'tokens':>6} {'pattern':<22} {head}  chosen")
    below = count = 0
    rows: list[dict[str, Any]] = []
    for n in map(int, options.lengths.split(",")):
        for name, pattern in families(n).items():
            if options.families not in name:
                continue
            cells, chosen = [], []
            for batch, heads in shapes:
                for grad in (False, True):
                    cells.append(ratio(pattern, (batch, heads), n, grad, options.seconds))
                    sizes = {"batch": batch, "heads": heads, "head_dim": DIM}
                    told = foveal.explain(pattern, n, requires_grad=grad, **sizes)
                    chosen.append(told.impl[0])
            below, count = below + sum(cell < 0.95 for cell in cells), count + len(cells)
            row = "  ".join(f"{a:7.2f} {b:5.2f}" for a, b in zip(*[iter(cells)] * 2, strict=True))
            print(f"{n:>6} {name:<22} {row}  {''.join(chosen)}", flush=True)
            rows.append({"tokens": n, "pattern": name, "speed": [round(x, 3) for x in cells]})
    print(f"{below} of {count} below 0.95")
    if options.json is not None:
        about = {"machine": machine.describe("cpu"), "class": processor_class()}
        about |= {"command": " ".join(["python", *sys.argv]), "shapes": options.shapes.split(",")}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
