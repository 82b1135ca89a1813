"""Hourglass beside hourglass-transformer-pytorch: the same keywords and lengths in one run.

    pip install --no-deps -r peers.txt
    python benchmarks/run.py hourglass-step
    python benchmarks/hourglass.py [--threads 2] [--only generate|long]

Prints ratios within the run, and the peak memory of a process of its own. The package stops
with a NameError at lengths that the factor does not divide; it is given the missing import here.
Its resampling attention stays inside groups of k tokens, ours reads the whole past.
"""

from __future__ import annotations

import argparse
import functools
import math
import subprocess
import sys
import time

import torch
from peers import peer
from timing import peak_memory
from torch.nn.functional import cross_entropy

from foveal.bench import Case
from foveal.bench.case import Job
from foveal.models import HourglassTransformerLM
from foveal.patterns import Full, SlidingWindow

SIZES = {"num_tokens": 256, "dim": 512, "heads": 8, "dim_head": 64}
GENERATE = {**SIZES, "depth": (4, 8, 4), "max_seq_len": 1024}
TRAIN = {**SIZES, "depth": (2, 4, 2), "shorten_factor": 4, "max_seq_len": 2048}
LONG = {**TRAIN, "max_seq_len": 65_536, "pattern": (SlidingWindow(256), Full(causal=True))}


def theirs(**options: object) -> torch.nn.Module:
    module = peer("hourglass_transformer_pytorch.hourglass_transformer_pytorch")
    module.math = math
    return module.HourglassTransformerLM(**options)


def step(model: torch.nn.Module, tokens: torch.Tensor) -> None:
    """Forward and backward pass of next-token prediction."""
    logits = model(tokens[:, :-1])
    cross_entropy(logits.transpose(1, 2), tokens[:, 1:]).backward()
    model.zero_grad()


# -- generation -----------------------------------------------------------------------------------


def generate(factor: int, attention: bool, new: int, sample: int) -> None:
    """`new` tokens by our cache; the package's wrapper, timed at `sample` of the same lengths."""
    options = {**GENERATE, "shorten_factor": factor, "attn_resampling": attention}
    prompt = torch.randint(0, 256, (1, 512))
    ours = HourglassTransformerLM(**options).eval()
    ours.generate(prompt, 8, seed=0)
    start = time.perf_counter()
    ours.generate(prompt, new, seed=0)
    mine = time.perf_counter() - start
    wrapper = peer("hourglass_transformer_pytorch.autoregressive_wrapper").AutoregressiveWrapper(
        theirs(**options)
    )
    start, every = time.perf_counter(), new // sample
    for length in range(512, 512 + new, every):  # one token at every so many lengths
        wrapper.generate(torch.randint(0, 256, (1, length)), 1)
    other = (time.perf_counter() - start) * every
    print(
        f"generate {new} after 512, factor {factor}, attention {attention}: "
        f"{other / mine:.1f} times as fast ({mine:.2f} s; {1e3 * mine / new:.1f} ms a token)"
    )


# -- training -------------------------------------------------------------------------------------


def make_step(attention: bool, contender: str, run: str, device: str) -> Job:
    make = HourglassTransformerLM if contender == "foveal" else theirs
    torch.manual_seed(0)
    model = make(**{**TRAIN, "attn_resampling": attention}).to(device)
    tokens = torch.randint(0, 256, (1, 2049), device=device)
    return lambda: step(model, tokens)


CASES = [
    Case(
        name,
        f"training step of HourglassTransformerLM, dim 512, depth (2, 4, 2), factor 4, {what}; "
        "2,048 tokens, float32",
        ("foveal", "hourglass-transformer-pytorch"),
        functools.partial(make_step, attention),
        runs=("training",),
        seconds=8.0,
    )
    for name, attention, what in (
        ("hourglass-step", True, "resampled by attention"),
        ("hourglass-step-plain", False, "no attention in resampling"),
    )
]


def long(checkpointing: bool) -> None:
    """One step of 65,536 tokens, outer layers in a sliding window."""
    model = HourglassTransformerLM(**LONG).activation_checkpointing(checkpointing)
    tokens = torch.randint(0, 256, (1, 65_536 + 1))
    start = time.perf_counter()
    step(model, tokens)
    print(
        f"65,536 tokens, recomputing {checkpointing}: {time.perf_counter() - start:.1f} s, peak "
        f"memory {peak_memory() / 1e9:.2f} GB, torch included"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=("generate", "long"))
    parser.add_argument("--factor", type=int, default=4)
    parser.add_argument("--sample", type=int, default=16, help="lengths timed of the package")
    parser.add_argument("--long", type=int, metavar="RECOMPUTE")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.long is not None:
        long(bool(args.long))
        return
    print(f"torch {torch.__version__}, {args.threads} threads, float32, {SIZES}")
    for attention in (True, False):
        if args.only in (None, "generate"):
            generate(args.factor, attention, 512, args.sample)
    if args.only in (None, "long"):
        for recompute in (0, 1):
            subprocess.run([sys.executable, __file__, "--long", str(recompute)], check=True)


if __name__ == "__main__":
    main()
