"""foveal.flex_attention: FlexAttention's masks and mods on a CPU, beside dense attention.

python benchmarks/run.py flex-documents

On CPU FlexAttention itself has no backward pass (torch 2.13).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from foveal.bench import Case
from foveal.bench.attention import DIM, HEADS, job, tensors
from foveal.bench.case import Job
from foveal.ops.mods import flex_attention

DOCUMENTS = (1024, 31, 700, 512, 2000, 5, 400, 1500, 260, 800, 900, 60)  # 8,192 tokens
CAP = 20.0


def capped(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return CAP * torch.tanh(score / CAP)


def documents(contender: str, run: str, device: str) -> Job:
    """A packed row under FlexAttention's mask of documents, beside SDPA under the same mask."""
    number = torch.repeat_interleave(torch.arange(len(DOCUMENTS)), torch.tensor(DOCUMENTS))
    number, length = number.to(device), len(number)
    qkv = tensors(1, length, "float32", run, device)
    if contender == "masked SDPA":
        mask = number[:, None] == number
        return job(lambda q, k, v: scaled_dot_product_attention(q, k, v, attn_mask=mask), qkv)
    from torch.nn.attention.flex_attention import create_block_mask

    block_mask = create_block_mask(
        lambda b, h, q, k: number[q] == number[k], None, None, length, length, device
    )
    score_mod = capped if contender.endswith("soft-cap") else None
    return job(lambda q, k, v: flex_attention(q, k, v, score_mod, block_mask), qkv)


CASES = [
    Case(
        "flex-documents-8192",
        "foveal.flex_attention, 12 documents in 8,192 tokens; 8 heads of 64, float32",
        ("flex_attention", "flex_attention, soft-cap", "masked SDPA"),
        documents,
        flops={
            "forward": 4.0 * sum(n * n for n in DOCUMENTS) * HEADS * DIM,
            "training": 14.0 * sum(n * n for n in DOCUMENTS) * HEADS * DIM,
        },
        seconds=20.0,
    )
]
