"""An exported window beside exported dense attention: time, and memory beside that of all pairs.

    python benchmarks/export.py [--lengths 4096,8192,16384] [--window 256] [--heads 8] [--rounds 3]

Both are programs of torch.export, written to a file, read back and run without a gradient, as they
run where foveal is not. Times are the median of rounds in which both take turns; memory is what
one call adds to a process that has read the program, and its share of n x n numbers of float32.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

import foveal
from foveal import patterns as P
from foveal.bench.measure import extra_memory, turns
from foveal.common.processor import processor_class
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


def job(path: Path, heads: int, length: int) -> Callable[[], object]:
    """A call of a program at a length."""
    run = torch.export.load(path).module()
    torch.manual_seed(0)
    given = torch.randn(3, 1, heads, length, DIM)

    def call() -> object:
        with torch.no_grad():
            return run(given)

    return call


def memory(path: Path, heads: int, length: int) -> int:
    """Bytes that one call adds, in a process of its own."""
    reading, writing = os.pipe()
    if not (child := os.fork()):
        os.write(writing, str(extra_memory(job(path, heads, length), "cpu")).encode())
        os._exit(0)
    os.waitpid(child, 0)
    return int(os.read(reading, 64))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--lengths", default="4096,8192,16384")
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    lengths = [int(one) for one in options.lengths.split(",")]
    threads = torch.get_num_threads()
    print(f"{processor_class()}, {threads} threads, {options.heads} heads of {DIM}, float32")
    print(f"{'tokens':>7} {'window':>9} {'dense':>9} {'times':>6} {'MiB':>7} {'of n x n':>9}")
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{name}.pt2" for name in ("window", "dense")}
        written(Window(options.window), options.heads, max(lengths), paths["window"])
        written(Dense(), options.heads, max(lengths), paths["dense"])
        # first, for a process that has run in threads must not be forked
        held = {length: memory(paths["window"], options.heads, length) for length in lengths}
        for length in lengths:
            jobs = {name: job(path, options.heads, length) for name, path in paths.items()}
            taken = turns(jobs, options.rounds)
            window, dense = (statistics.median(taken[name]) for name in ("window", "dense"))
            share = held[length] / (4 * length * length)
            print(
                f"{length:>7} {window:>8.3f}s {dense:>8.3f}s {dense / window:>6.1f} "
                f"{held[length] / 2**20:>7.0f} {share:>9.3f}"
            )


if __name__ == "__main__":
    main()
