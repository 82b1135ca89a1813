"""Hierarchical attention beside causal SDPA and h-transformer-1d, and its growth with length.

    pip install --no-deps -r peers.txt
    python benchmarks/htransformer.py [growth | sdpa | step | decode | memory] [--threads 2]

Prints ratios of medians taken in turn in one run, and the peak memory of the longest case in a
process of its own. Absolute times depend on the machine; the ratios are what the docs quote.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import time

import torch
from timing import medians, peak_memory
from torch import Tensor
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

import foveal
from foveal import patterns as P

PATTERN = P.Pyramid(16, causal=True)
TRAINED = {"dim": 512, "depth": 6, "max_seq_len": 4096, "block_size": 128, "causal": True}
DECODED = {"dim": 512, "depth": 2, "max_seq_len": 1024, "block_size": 16, "causal": True}


def tensors(length: int, heads: int = 8) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(1, heads, length, 64) for _ in range(3)]


def pyramid(qkv: list[Tensor]) -> Tensor:
    with torch.no_grad():
        return foveal.attend(*qkv, PATTERN)


def dense(qkv: list[Tensor]) -> Tensor:
    with torch.no_grad():
        return scaled_dot_product_attention(*qkv, is_causal=True)


def growth(rounds: int) -> None:
    """The slope of log time over log length, by least squares."""
    logs = []
    # two heads: eight times 2^20 tokens would need more memory than many machines have
    for power in range(14, 21, 2):
        qkv = tensors(1 << power, heads=2)
        took = medians({"ours": lambda x=qkv: pyramid(x)}, rounds)["ours"]
        logs.append((power * math.log(2), math.log(took)))
        print(f"2^{power} tokens, 2 heads, forward: {took:.3f} s")
    x, y = (torch.tensor(column).double() for column in zip(*logs, strict=True))
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
    print(f"slope of log time over log length from 2^14 to 2^20: {slope:.2f}")


def sdpa(rounds: int) -> None:
    qkv = tensors(1 << 15)
    took = medians({"dense": lambda: dense(qkv), "ours": lambda: pyramid(qkv)}, rounds)
    print(f"2^15 tokens, 8 heads: {took['dense'] / took['ours']:.1f} times causal SDPA's speed")


def memory() -> None:
    qkv = tensors(1 << 20, heads=2)
    pyramid(qkv)
    print(
        f"2^20 tokens, 2 heads, forward: peak memory {peak_memory() / 1e9:.1f} GB, torch included"
    )


def models(sizes: dict) -> dict[str, torch.nn.Module]:
    from h_transformer_1d import HTransformer1D

    torch.manual_seed(0)
    return {
        "theirs": HTransformer1D(num_tokens=256, **sizes),
        "ours": foveal.HTransformer1D(num_tokens=256, **sizes),
    }


def step(rounds: int) -> None:
    """A training step: forward, backward, one AdamW update."""
    tokens = torch.randint(0, 256, (1, 4097))
    jobs = {}
    for name, model in models(TRAINED).items():
        optimizer = torch.optim.AdamW(model.parameters())

        def job(model: torch.nn.Module = model, optimizer: torch.optim.Optimizer = optimizer):
            optimizer.zero_grad()
            logits = model(tokens[:, :-1])
            cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
            optimizer.step()

        jobs[name] = job
    took = medians(jobs, rounds)
    print(f"{TRAINED}, one training step: {took['ours']:.2f} s")
    print(f"  {took['theirs'] / took['ours']:.2f} times as fast as h-transformer-1d")


def decode(rounds: int) -> None:
    """512 tokens after 512, beside the package's wrapper, which starts over for every token."""
    from h_transformer_1d.autoregressive_wrapper import AutoregressiveWrapper

    pair = models(DECODED)
    wrapper = AutoregressiveWrapper(pair["theirs"])
    prompt = torch.randint(0, 256, (1, 512))
    start = time.perf_counter()
    pair["ours"].generate(prompt, 512, top_k=25)
    ours = time.perf_counter() - start
    start = time.perf_counter()
    wrapper.generate(prompt, 512)
    theirs = time.perf_counter() - start
    print(f"512 tokens after 512: {theirs / ours:.0f} times as fast as h-transformer-1d's wrapper")
    model = foveal.HTransformer1D(num_tokens=256, **{**DECODED, "max_seq_len": 1 << 17}).eval()
    token = torch.zeros(1, dtype=torch.long)
    states = {}
    for context in (1024, 65_536):
        _, states[context] = model.prefill(torch.randint(0, 256, (1, context)))

    def several(context: int) -> None:
        for _ in range(32):
            _, states[context] = model.step(token, states[context])

    took = medians({str(c): lambda c=c: several(c) for c in states}, 3 * rounds)
    print(f"a token at 65,536 takes {took['65536'] / took['1024']:.2f} times as long as at 1,024")


RUNS = {"growth": growth, "sdpa": sdpa, "step": step, "decode": decode}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", default=[*RUNS, "memory"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.what == ["memory"]:
        memory()
        return
    print(f"torch {torch.__version__}, {args.threads} threads, heads of 64, float32, {PATTERN}")
    for name in args.what:
        if name == "memory":
            subprocess.run([sys.executable, __file__, name], check=True)
        else:
            RUNS[name](args.rounds)


if __name__ == "__main__":
    main()
