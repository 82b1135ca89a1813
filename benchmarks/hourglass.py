"""Hourglass beside hourglass-transformer-pytorch: the same keywords and lengths in one run.

    pip install --no-deps -r peers.txt
    python benchmarks/hourglass.py [--threads 2] [--rounds 3] [--only generate|train|long]

Prints ratios within the run, and extra peak memory of processes of their own. The package stops
with a NameError at lengths that the factor does not divide; it is given the missing import here.
Its resampling attention stays inside groups of k tokens, ours reads the whole past.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import time

import torch
from peers import peer
from timing import medians, peak_memory
from torch.nn.functional import cross_entropy

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


MAKE = {"ours": HourglassTransformerLM, "theirs": theirs}


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


def train(attention: bool, batch: int, rounds: int) -> None:
    options = {**TRAIN, "attn_resampling": attention}
    models = {name: make(**options) for name, make in MAKE.items()}
    tokens = torch.randint(0, 256, (batch, 2049))
    took = medians({n: lambda m=m: step(m, tokens) for n, m in models.items()}, rounds)
    memory = {name: measured(name, attention, batch) for name in MAKE}
    print(
        f"training step, {batch} x 2,048, attention {attention}: "
        f"{took['theirs'] / took['ours']:.2f} times as fast ({took['ours']:.2f} s), "
        f"{memory['ours'] / memory['theirs']:.2f} of the extra peak memory "
        f"({memory['ours'] / 1e9:.2f} GB)"
    )


def extra_memory(name: str, attention: bool, batch: int) -> None:
    """Print the bytes that one step adds to the process's peak."""
    model = MAKE[name](**{**TRAIN, "attn_resampling": attention})
    tokens = torch.randint(0, 256, (batch, 2049))
    before = peak_memory()
    step(model, tokens)
    print(peak_memory() - before)


def measured(name: str, attention: bool, batch: int) -> int:
    command = [sys.executable, __file__, "--memory", name, str(int(attention)), str(batch)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


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
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("generate", "train", "long"))
    parser.add_argument("--factor", type=int, default=4)
    parser.add_argument("--sample", type=int, default=16, help="lengths timed of the package")
    parser.add_argument("--memory", nargs=3, metavar=("PACKAGE", "ATTENTION", "BATCH"))
    parser.add_argument("--long", type=int, metavar="RECOMPUTE")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.memory:
        extra_memory(args.memory[0], args.memory[1] == "1", int(args.memory[2]))
        return
    if args.long is not None:
        long(bool(args.long))
        return
    print(f"torch {torch.__version__}, {args.threads} threads, float32, {SIZES}")
    for attention in (True, False):
        if args.only in (None, "generate"):
            generate(args.factor, attention, 512, args.sample)
        if args.only in (None, "train"):
            train(attention, 1, args.rounds)
    if args.only in (None, "long"):
        for recompute in (0, 1):
            subprocess.run([sys.executable, __file__, "--long", str(recompute)], check=True)


if __name__ == "__main__":
    main()
