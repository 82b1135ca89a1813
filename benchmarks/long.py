"""A million tokens on four processes: the memory of each, and the bytes that it sends.

    python benchmarks/long.py [--tokens 1048576] [--ranks 4] [--output FILE.json]
    torchrun --nproc-per-node 4 benchmarks/long.py

Attention under a window of 128, forward and backward, and a training step of a language model of
two such layers. Memory is the peak of a whole process, interpreter and libraries included; bytes
are counted where they are handed to torch.distributed, those for the process itself left out.
Without torchrun it forks its processes; all exchange by gloo on this machine.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import resource
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import foveal
from foveal import parallel
from foveal import patterns as P
from foveal.bench.machine import describe
from foveal.parallel import ranks

WINDOW = 128
HEADS, HEAD_DIM = 2, 16
MODEL: dict[str, Any] = {
    "dim": 32, "depth": 2, "heads": HEADS, "kv_heads": 1, "dim_head": HEAD_DIM, "ff_mult": 2,
}  # fmt: skip
CHUNK = 8192


class Sent:
    """Bytes that this process hands to others, counted at the collectives."""

    def __init__(self) -> None:
        self.bytes = 0
        exchange, gather = dist.all_to_all_single, ranks._all_gather
        rank, size = dist.get_rank(), dist.get_world_size()

        def exchanging(
            found: Any, rows: Tensor, received: Any, sent: list[int], **more: Any
        ) -> Any:
            row = math.prod(rows.shape[1:]) * rows.element_size()
            self.bytes += (sum(sent) - sent[rank]) * row
            return exchange(found, rows, received, sent, **more)

        def gathering(found: Any, rows: Tensor, **more: Any) -> Any:
            self.bytes += rows.numel() * rows.element_size() * (size - 1)
            return gather(found, rows, **more)

        dist.all_to_all_single = exchanging
        ranks._all_gather = gathering


def attention(own: int) -> None:
    """Attention of the own tokens, forward and backward."""
    shape = (1, HEADS, own, HEAD_DIM)
    q, k, v = (torch.randn(shape, requires_grad=True) for _ in range(3))
    parallel.attend(q, k, v, P.SlidingWindow(WINDOW), dist.group.WORLD).sum().backward()


def model(own: int) -> None:
    """A training step of a language model, without the sum of gradients over the processes."""
    longest = own * dist.get_world_size()
    lm = foveal.TransformerLM(**MODEL, pattern=P.SlidingWindow(WINDOW), max_seq_len=longest)
    parallel.shard_sequence(lm.activation_checkpointing(), dist.group.WORLD)
    tokens = torch.randint(256, (1, own))
    targets = parallel.next_tokens(tokens, dist.group.WORLD)
    lm(tokens, targets=targets, chunk=CHUNK).sum().backward()


WORK: dict[str, Callable[[int], None]] = {"attention": attention, "model": model}


def peak() -> int:
    """Bytes that this process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(case: str, tokens: int) -> list[dict[str, Any]]:
    """What each process of the group has needed."""
    own = tokens // dist.get_world_size()
    torch.manual_seed(dist.get_rank())
    sent, before = Sent(), peak()
    dist.barrier()
    started = time.perf_counter()
    WORK[case](own)
    found = {
        "seconds": round(time.perf_counter() - started, 2),
        "peak_bytes": peak(),
        "peak_bytes_before": before,
        "sent_bytes": sent.bytes,
    }
    everything: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everything, found)
    return everything


def act(case: str, tokens: int) -> list[dict[str, Any]]:
    dist.init_process_group("gloo", timeout=datetime.timedelta(minutes=5))
    torch.set_num_threads(1)
    try:
        return measure(case, tokens)
    finally:
        dist.destroy_process_group()


def forked(case: str, tokens: int, count: int) -> list[dict[str, Any]]:
    """`act` in so many processes of this machine."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE=str(count))
    reading, writing = os.pipe()
    children = []
    for rank in range(count):
        child = os.fork()
        if child:
            children.append(child)
            continue
        code = 1
        try:
            os.environ["RANK"] = str(rank)
            results = act(case, tokens)
            if rank == 0:
                os.write(writing, json.dumps(results).encode())
            code = 0
        finally:
            os._exit(code)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    os.close(writing)
    if any(codes):
        raise SystemExit(f"processes of {case} ended with {codes}.")
    results: list[dict[str, Any]] = json.loads(os.read(reading, 1 << 16))
    return results


def record(tokens: int, count: int, found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """All results, and what `parallel.explain` computes for the attention."""
    said = parallel.explain(
        P.SlidingWindow(WINDOW), tokens, count, heads=HEADS, head_dim=HEAD_DIM, itemsize=4
    )
    return {
        "title": f"window of {WINDOW}, {tokens:,} tokens on {count} processes, forward + backward",
        "attention": {"heads": HEADS, "head_dim": HEAD_DIM, "dtype": "float32"},
        "model": MODEL,
        "machine": {**describe("cpu"), "threads": 1},
        "explained_bytes_received_forward": said.bytes,
        "processes": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=1 << 20)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    launched = "RANK" in os.environ
    count = int(os.environ["WORLD_SIZE"]) if launched else args.ranks
    found = {}
    for case in WORK:
        found[case] = act(case, args.tokens) if launched else forked(case, args.tokens, count)
    if launched and os.environ["RANK"] != "0":
        return
    for case, results in found.items():
        most = {name: max(one[name] for one in results) for name in results[0]}
        print(
            f"{case:9}  {most['seconds']:5.1f} s, peak {most['peak_bytes'] / 1e6:,.0f} MB a "
            f"process ({most['peak_bytes_before'] / 1e6:,.0f} before), "
            f"sent {most['sent_bytes']:,} bytes"
        )
    if args.output:
        text = json.dumps(record(args.tokens, count, found), indent=1)
        args.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
