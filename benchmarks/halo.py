"""HaloAttention beside halonet-pytorch: the same layer, weights and input in one run.

    pip install --no-deps -r peers.txt
    python benchmarks/halo.py [--threads 2] [--rounds 5]

Prints ratios of medians taken in turn, and the extra peak memory of each in a process of its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable

import torch
from timing import medians, peak_memory

SIZES = {"dim": 512, "block_size": 8, "halo_size": 4, "dim_head": 64, "heads": 8}
SHAPE = (4, 512, 64, 64)


def layer(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if name == "foveal":
        from foveal.layers import HaloAttention
    else:
        from halonet_pytorch import HaloAttention
    return HaloAttention(**SIZES)


def forward(module: torch.nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad():
        module(x)


def training(module: torch.nn.Module, x: torch.Tensor) -> None:
    module(x).sum().backward()


RUNS: dict[str, Callable[[torch.nn.Module, torch.Tensor], None]] = {
    "forward": forward,
    "forward + backward": training,
}


def extra_memory(name: str, run: str) -> None:
    """Print the bytes that one call adds to the process's peak, libraries loaded before."""
    module, x = layer(name), torch.randn(SHAPE, requires_grad=run != "forward")
    RUNS[run](module, torch.randn(1, SHAPE[1], 16, 16))
    before = peak_memory()
    RUNS[run](module, x)
    print(peak_memory() - before)


def measured(name: str, run: str) -> int:
    command = [sys.executable, __file__, "--memory", name, run]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", nargs=2, metavar=("PACKAGE", "RUN"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory:
        extra_memory(*args.memory)
        return
    ours, theirs = layer("foveal"), layer("halonet-pytorch")
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(SHAPE, requires_grad=True)
    with torch.no_grad():
        difference = float((ours(x) - theirs(x)).abs().max())
    print(f"torch {torch.__version__}, {args.threads} threads, float32, {SIZES}, input {SHAPE}")
    print(f"largest difference of the outputs {difference:.1e}")
    for name, run in RUNS.items():
        took = medians(
            {"ours": lambda r=run: r(ours, x), "theirs": lambda r=run: r(theirs, x)}, args.rounds
        )
        memory = measured("foveal", name) / measured("halonet-pytorch", name)
        speed = took["theirs"] / took["ours"]
        print(f"{name}: {speed:.2f} times as fast, {memory:.2f} of the extra peak memory")


if __name__ == "__main__":
    main()
