"""Hierarchical attention over a long sequence, decoded with a state that hardly grows.

Near tokens are read one by one, far ones as means of ever larger clusters: every token reaches
every later one, at a cost of O(n log n).

Prints:
    tokens   pairs, dense   pairs, pyramid   decoding state
     1,024        524,800 ...
     8,192     33,558,528 ...
    65,536  2,147,516,416 ...
    read 4,096 bytes and wrote 16; the state grew ... times from 64 bytes on
    the first byte moves the last logits: True
"""

import torch

import foveal
from foveal import patterns as P


def main() -> None:
    torch.manual_seed(0)
    dense, pyramid = P.Full(causal=True), P.Pyramid(block_size=16, causal=True)
    model = foveal.HTransformer1D(
        dim=64, depth=2, heads=2, dim_head=32, causal=True, block_size=16, max_seq_len=65_536
    ).eval()
    print("tokens   pairs, dense   pairs, pyramid   decoding state")
    for length in (1024, 8192, 65_536):
        cost = foveal.cost(model, length)
        state = cost.cache_bytes_per_token * length / 1024
        pairs = dense.num_pairs(length), pyramid.num_pairs(length)
        print(f"{length:6,} {pairs[0]:14,} {pairs[1]:16,} {state:12,.0f} KiB")

    prompt = torch.randint(256, (1, 4096))
    _, short = model.prefill(prompt[:, :64])
    logits, cache = model.prefill(prompt)
    growth = cache.num_bytes / short.num_bytes
    written = []
    for _ in range(16):  # what model.generate(prompt, 16, temperature=0) does
        token = logits.argmax(-1)
        written.append(int(token))
        logits, cache = model.step(token, cache)
    print(
        f"read {prompt.shape[1]:,} bytes and wrote {len(written)}; "
        f"the state grew {growth:.1f} times from 64 bytes on"
    )
    other = prompt.clone()
    other[0, 0] = (other[0, 0] + 1) % 256
    moved = model.prefill(other)[0] != model.prefill(prompt)[0]
    print("the first byte moves the last logits:", bool(moved.any()))


if __name__ == "__main__":
    main()
