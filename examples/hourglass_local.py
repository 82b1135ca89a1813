"""An hourglass whose outer layers look only around: near-linear, and the context is whole.

The outer layers read a window at full length; the inner ones read everything, at a quarter of the
length.

Prints:
    FLOPs a token at length 16,384: outer layers dense ..., local ...
    cache bytes a token: outer layers dense ..., local ...
    one training step: loss ...
    wrote (1, 24) with a cache, 8 bytes of them given
"""

from typing import Any

import torch
from torch.nn.functional import cross_entropy

import foveal
from foveal import patterns as P

LENGTH = 16_384


def make(outer: P.Pattern) -> Any:
    return foveal.HourglassTransformerLM(
        hierarchy="1@1 2@4 1@1",  # a layer, two at a quarter of the length, a layer
        dim=64,
        heads=2,
        dim_head=32,
        max_seq_len=LENGTH,
        attn_resampling=False,
        pattern=[outer, P.Full(causal=True)],
    )


def main() -> None:
    torch.manual_seed(0)
    dense, local = make(P.Full(causal=True)), make(P.SlidingWindow(128))
    costs = [foveal.cost(model, LENGTH) for model in (dense, local)]
    flops = [f"{cost.flops_per_token:,.0f}" for cost in costs]
    cache = [f"{cost.cache_bytes_per_token:,.0f}" for cost in costs]
    print(f"FLOPs a token at length {LENGTH:,}: outer layers dense {flops[0]}, local {flops[1]}")
    print(f"cache bytes a token: outer layers dense {cache[0]}, local {cache[1]}")

    text = torch.tensor([list(b"structured attention " * 20)])
    loss = cross_entropy(local(text[:, :-1]).transpose(1, 2), text[:, 1:])
    loss.backward()
    print(f"one training step: loss {loss.item():.2f}")
    written = local.generate(text[:, :8], 16, seed=0)
    print("wrote", tuple(written.shape), "with a cache, 8 bytes of them given")


if __name__ == "__main__":
    main()
