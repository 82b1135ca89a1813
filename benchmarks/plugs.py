"""The plugs: models of transformers, and the layers of natten and DeepSpeed, computed by foveal.

    python benchmarks/run.py modernbert gemma3 natten deepspeed
    python benchmarks/run.py train-modernbert train-gemma3

Models have random weights and the published shape, but one period of its layers, which all others
repeat, and no embeddings to vocabulary. natten's own way on a CPU is FlexAttention, which it has
for the forward pass alone; DeepSpeed has none, and under a mask scaled_dot_product_attention is
what is left of it there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from foveal.bench import Case
from foveal.bench.attention import HEADS, flops, job, tensors
from foveal.bench.case import Job
from foveal.integrations import natten as ours
from foveal.integrations.deepspeed import FixedSparsityConfig, SparseSelfAttention
from foveal.patterns import BlockSparse, Neighborhood

TOKENS = 8192
SMALL = {"vocab_size": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
"""Of models whose embeddings are not what is timed."""


def modernbert() -> Any:
    """ModernBERT-base: a global layer and two of half-window 64."""
    from transformers import ModernBertConfig, ModernBertModel

    ends = {"cls_token_id": 1, "sep_token_id": 2}
    return ModernBertModel(ModernBertConfig(num_hidden_layers=3, **ends, **SMALL))


def gemma3() -> Any:
    """Gemma-3-1B: five layers with a window of 512 and a global one."""
    from transformers import Gemma3TextConfig, Gemma3TextModel

    heads = {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256}
    sizes = {"hidden_size": 1152, "intermediate_size": 6912, "max_position_embeddings": 32768}
    layers = {"num_hidden_layers": 6, "sliding_window": 512, "use_cache": False}
    return Gemma3TextModel(Gemma3TextConfig(**heads, **sizes, **layers, **SMALL))


def whole(model: Callable[[], Any]) -> Callable[[str, str, str], Job]:
    """A pass of a model of transformers, its attention computed by the contender."""

    def make(contender: str, run: str, device: str) -> Job:
        torch.manual_seed(0)
        made = model().to(device).eval()
        if contender == "foveal":
            import foveal.integrations.transformers  # noqa: F401  (registers the name)
        made.set_attn_implementation(contender)
        tokens = torch.randint(3, SMALL["vocab_size"], (1, TOKENS), device=device)

        def once() -> None:
            with torch.set_grad_enabled(run == "training"):
                out = made(input_ids=tokens)[0]
                if run == "training":
                    out.sum().backward()
                    made.zero_grad()

        return once

    return make


SIZE, KERNEL = (64, 64), 13
AROUND = Neighborhood(SIZE, KERNEL, border="shift")


def heads_last(na2d: Any) -> Any:
    """na2d for tensors (batch, heads, tokens, head_dim), which are views here and there."""

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2).unflatten(1, SIZE) for x in (q, k, v))
        return na2d(q, k, v, kernel_size=KERNEL).flatten(1, 2).transpose(1, 2)

    return run


def masked(mask: Tensor) -> Any:
    return lambda q, k, v: scaled_dot_product_attention(q, k, v, attn_mask=mask)


def neighbourhoods(contender: str, run: str, device: str) -> Job:
    """na2d of foveal, of natten as it is installed, or SDPA under the mask."""
    qkv = tensors(1, SIZE[0] * SIZE[1], "float32", run, device)
    if contender == "na2d":
        return job(heads_last(ours.na2d), qkv)
    if contender == "masked SDPA":
        return job(masked(AROUND.mask(SIZE[0] * SIZE[1], device=device)), qkv)
    import natten

    return job(heads_last(natten.na2d), qkv)


def block_sparse(length: int) -> Any:
    """SparseSelfAttention with the triangle as attn_mask, beside SDPA under the same pairs."""

    def make(contender: str, run: str, device: str) -> Job:
        qkv = tensors(1, length, "float32", run, device)
        config = FixedSparsityConfig(HEADS, attention="unidirectional")
        if contender == "masked SDPA":
            layout = config.make_layout(length)
            return job(masked(BlockSparse(layout, config.block, True).mask(length)), qkv)
        module = SparseSelfAttention(config, max_seq_length=length)
        triangle = torch.ones(length, length).tril()
        return job(lambda q, k, v: module(q, k, v, attn_mask=triangle), qkv)

    return make


CASES = [
    Case(
        f"{prefix}{model.__name__}",
        f"{title}, {TOKENS:,} tokens, float32",
        ("foveal", "sdpa"),
        whole(model),
        runs=(run,),
        devices=("cpu",),
        seconds=seconds,
    )
    for model, title, prefix, run, seconds in (
        (modernbert, "3 layers of ModernBERT-base", "", "forward", 17.0),
        (modernbert, "3 layers of ModernBERT-base", "train-", "training", 60.0),
        (gemma3, "6 layers of Gemma-3-1B", "", "forward", 80.0),
        (gemma3, "6 layers of Gemma-3-1B", "train-", "training", 280.0),
    )
]
CASES += [
    Case(
        name,
        f"natten's na2d, {SIZE[0]} x {SIZE[1]} tokens, kernel {KERNEL}; 8 heads of 64, float32",
        ("na2d", peer),
        neighbourhoods,
        runs=runs,
        flops={run: flops(AROUND, SIZE[0] * SIZE[1], 1)[run] for run in runs},
        devices=("cpu",),
        seconds=seconds,
    )
    for name, peer, runs, seconds in (
        ("natten-forward", "natten", ("forward",), 11.0),
        ("natten-training", "masked SDPA", ("forward", "training"), 5.0),
    )
]
CASES += [
    Case(
        f"deepspeed-{length}",
        f"DeepSpeed's Fixed layout, unidirectional, {length:,} tokens; 8 heads of 64, float32",
        ("SparseSelfAttention", "masked SDPA"),
        block_sparse(length),
        flops=flops(BlockSparse.fixed(length, attention="unidirectional"), length, 1),
        devices=("cpu",),
        seconds=seconds,
    )
    for length, seconds in ((4096, 6.0), (8192, 25.0))
]
