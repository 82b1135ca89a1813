"""Hierarchical attention beside causal SDPA and h-transformer-1d, and its growth with length.

    pip install --no-deps -r peers.txt
    python benchmarks/run.py pyramid htransformer
    python benchmarks/htransformer.py [growth | decode | memory] [--threads 2]

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
from peers import peer
from timing import medians, peak_memory
from torch import Tensor
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

import foveal
from foveal import patterns as P
from foveal.bench import Case
from foveal.bench.case import Job

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


def memory() -> None:
    qkv = tensors(1 << 20, heads=2)
    pyramid(qkv)
    print(
        f"2^20 tokens, 2 heads, forward: peak memory {peak_memory() / 1e9:.1f} GB, torch included"
    )


def models(sizes: dict) -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    return {
        "theirs": peer("h_transformer_1d.h_transformer_1d").HTransformer1D(
            num_tokens=256, **sizes
        ),
        "ours": foveal.HTransformer1D(num_tokens=256, **sizes),
    }


def make_step(contender: str, run: str, device: str) -> Job:
    """A training step: forward, backward, one AdamW update."""
    model = models(TRAINED)["ours" if contender == "foveal" else "theirs"].to(device)
    optimizer = torch.optim.AdamW(model.parameters())
    tokens = torch.randint(0, 256, (1, 4097), device=device)

    def job() -> None:
        optimizer.zero_grad()
        logits = model(tokens[:, :-1])
        cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()

    return job


def make_pyramid(contender: str, run: str, device: str) -> Job:
    qkv = [x.to(device) for x in tensors(1 << 15)]
    return lambda: (pyramid if contender == "foveal" else dense)(qkv)


CASES = [
    Case(
        "pyramid-32768",
        "causal pyramid of blocks of 16 over 32,768 tokens, beside dense causal attention; batch "
        "1, 8 heads of 64, float32",
        ("foveal", "dense"),
        make_pyramid,
        runs=("forward",),
        seconds=10.0,
    ),
    Case(
        "htransformer-step",
        "training step of HTransformer1D with AdamW, dim 512, depth 6, blocks of 128, 4,096 "
        "tokens, float32",
        ("foveal", "h-transformer-1d"),
        make_step,
        runs=("training",),
        seconds=10.0,
    ),
]


def decode(rounds: int) -> None:
    """512 tokens after 512, beside the package's wrapper, which starts over for every token."""
    pair = models(DECODED)
    module = peer("h_transformer_1d.autoregressive_wrapper")
    wrapper = module.AutoregressiveWrapper(pair["theirs"])
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


RUNS = {"growth": growth, "decode": decode}


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
