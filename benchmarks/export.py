"""An exported window beside exported dense attention: time, and memory beside that of all pairs.

    python benchmarks/export.py [--lengths 4096,8192,16384] [--window 256] [--heads 8] [--rounds 3]
        [--json benchmarks/results/export/avx2.json]

Both are programs of torch.export, written to a file, read back and run without a gradient, as they
run where foveal is not. Times are the median of rounds in which both take turns; memory is what
one call adds to a process that has read the program, and its share of n x n numbers of float32;
likewise of the window as ONNX in onnxruntime.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

import foveal
from foveal import export
from foveal import patterns as P
from foveal.bench import machine
from foveal.bench.measure import extra_memory, turns
from foveal.common.processor import processor_class
from foveal.export.onnx import to_onnx
from foveal.ops.lowered import lowering

DIM = 64


class Window(nn.Module):
    """attend() under a sliding window."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self.pattern = P.SlidingWindow(window)

    def forward(self, x: Tensor) -> Tensor:
        """q, k and v (3, batch, heads, length, DIM) -> (batch, heads, length, DIM)."""
        return foveal.attend(*x.unbind(), self.pattern)


class Dense(nn.Module):
    """What torch has for every earlier token."""

    def forward(self, x: Tensor) -> Tensor:
        """q, k and v (3, batch, heads, length, DIM) -> (batch, heads, length, DIM)."""
        return scaled_dot_product_attention(*x.unbind(), is_causal=True)


def written(module: nn.Module, heads: int, longest: int, path: Path) -> None:
    """Trace for any length up to the longest, and write."""
    example = (torch.zeros(3, 1, heads, longest - 1, DIM),)
    dims = ({3: torch.export.Dim("length", min=2, max=longest)},)
    settings: Any = torch.fx.experimental._config
    with lowering(), torch.no_grad(), settings.patch(backed_size_oblivious=True):
        program = torch.export.export(module, example, dynamic_shapes=dims)
    torch.export.save(program, path)


def as_onnx(path: Path) -> Path:
    """A program of torch as ONNX, beside it."""
    inputs = [{"name": "x", "sizes": ["three", "batch", "heads", "length", "features"]}]
    graph = to_onnx(torch.export.load(path), {"inputs": inputs, "dtype": "float32"})
    found = path.with_suffix(".onnx")
    found.write_bytes(graph.SerializeToString())
    return found


def job(path: Path, heads: int, length: int) -> Callable[[], object]:
    """A call of a program at a length."""
    is_onnx = path.suffix == ".onnx"
    run = export.OnnxProgram(path) if is_onnx else torch.export.load(path).module()
    torch.manual_seed(0)
    given = torch.randn(3, 1, heads, length, DIM)

    def call() -> object:
        with torch.no_grad():
            return run(given)

    return call


def memory(path: Path, heads: int, length: int) -> int:
    """Bytes that one call adds to this process."""
    return extra_memory(job(path, heads, length), "cpu")


def fresh_memory(*given: Any) -> int:
    """`memory` in a process of its own; no fork, for this one has run in threads."""
    with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
        return fresh.submit(memory, *given).result()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--lengths", default="4096,8192,16384")
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file for the figures, too")
    options = parser.parse_args()
    lengths = [int(one) for one in options.lengths.split(",")]
    threads = torch.get_num_threads()
    print(f"{processor_class()}, {threads} threads, {options.heads} heads of {DIM}, float32")
    print(f"{'tokens':>7} {'window':>9} {'dense':>9} {'times':>6}  MiB, of n x n: torch, ONNX")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{name}.pt2" for name in ("window", "dense")}
        written(Window(options.window), options.heads, max(lengths), paths["window"])
        written(Dense(), options.heads, max(lengths), paths["dense"])
        both = {"torch": paths["window"], "onnxruntime": as_onnx(paths["window"])}
        for length in lengths:
            jobs = {name: job(path, options.heads, length) for name, path in paths.items()}
            taken = turns(jobs, options.rounds)
            held = {name: fresh_memory(path, options.heads, length) for name, path in both.items()}
            window, dense = (statistics.median(taken[name]) for name in ("window", "dense"))
            shares = {name: one / (4 * length * length) for name, one in held.items()}
            told = "  ".join(
                f"{one / 2**20:>6.0f} {shares[name]:.3f}" for name, one in held.items()
            )
            print(f"{length:>7} {window:>8.3f}s {dense:>8.3f}s {dense / window:>6.1f}  {told}")
            seconds = {"window": round(window, 4), "dense": round(dense, 4)}
            rows.append({"tokens": length, "seconds": seconds, "bytes": held})
    if options.json is not None:
        about = {"machine": machine.describe("cpu"), "class": processor_class()}
        about |= {"command": " ".join(["python", *sys.argv])}
        about |= {"window": options.window, "heads": options.heads}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
