"""attend() in each implementation beside dense attention: what needs no other package."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from foveal.bench.case import Case, Job
from foveal.ops import attend
from foveal.patterns import (
    Axial,
    Blocks,
    BlockSparse,
    Fixed,
    Full,
    Halo,
    Neighborhood,
    Pattern,
    SlidingWindow,
    Strided,
    TextImage,
)

HEADS, DIM = 8, 64
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def tensors(batch: int, length: int, dtype: str, run: str, device: str) -> list[Tensor]:
    """q, k and v (batch, heads, length, dim), laid out as one projection leaves them."""
    torch.manual_seed(0)
    joined = torch.randn(batch, length, 3, HEADS, DIM, device=device).to(getattr(torch, dtype))
    return [x.transpose(1, 2).detach().requires_grad_(run == "training") for x in joined.unbind(2)]


def job(attention: Attention, qkv: list[Tensor], last: int | None = None) -> Job:
    """The forward pass, or with inputs that require gradients the forward and backward pass.

    last: so many queries, the last ones, have a result; all when None.
    """
    if not qkv[0].requires_grad:

        def forward() -> Tensor:
            with torch.no_grad():
                return attention(*qkv)

        return forward
    grad = torch.randn_like(qkv[0] if last is None else qkv[0][:, :, -last:])
    return lambda: torch.autograd.grad(attention(*qkv), qkv, grad)


def dense(pattern: Pattern, length: int, device: str) -> Attention:
    """scaled_dot_product_attention under the pattern's mask, or causal where that is shorter."""
    if isinstance(pattern, SlidingWindow | Full) and pattern.causal:  # a mask would be slower
        return lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=True)
    mask = pattern.mask(length, device=device)
    return lambda q, k, v: scaled_dot_product_attention(q, k, v, attn_mask=mask)


def flops(pattern: Pattern, length: int, batch: int) -> dict[str, float]:
    """Of the allowed pairs: two products forward, five backward."""
    forward = 4.0 * pattern.num_pairs(length) // (pattern.heads or 1) * DIM * HEADS * batch
    return {"forward": forward, "training": 3.5 * forward}


def traffic(length: int, batch: int, dtype: str) -> dict[str, float]:
    """Each of q, k, v, out once; in training also all of them again, and their gradients."""
    one = float(length * batch * HEADS * DIM * (2 if dtype == "bfloat16" else 4))
    return {"forward": 4 * one, "training": 12 * one}


def pattern_case(
    name: str,
    title: str,
    pattern: Pattern,
    length: int,
    batch: int = 1,
    dtype: str = "float32",
    contenders: tuple[str, ...] = ("native", "tiled", "dense"),
    quick: bool = False,
    seconds: float = 1.0,
) -> Case:
    """attend() under a pattern in several implementations beside dense attention."""

    def make(contender: str, run: str, device: str) -> Job:
        qkv = tensors(batch, length, dtype, run, device)
        if contender == "dense":
            return job(dense(pattern, length, device), qkv)
        impl = None if contender == "attend" else contender
        return job(lambda q, k, v: attend(q, k, v, pattern, impl=impl), qkv)

    return Case(
        name,
        f"{title}; batch {batch}, {HEADS} heads of {DIM}, {dtype}",
        contenders,
        make,
        flops=flops(pattern, length, batch),
        bytes=traffic(length, batch, dtype),
        dtype=dtype,
        seconds=seconds,
        quick=quick,
    )


WINDOW = SlidingWindow(256)
DALLE = {k: TextImage(256, Neighborhood(32, k, causal="corner")) for k in (5, 11)}
HALO = Halo(64, block_size=8, halo_size=4)

CAUSAL = {
    "window": SlidingWindow(256),
    "blocks": Blocks(256, causal=True, lookback=1),
    "strided": Strided(64),
    "fixed": Fixed(64, 8),
    "block-sparse": BlockSparse.fixed(4096, 64, causal=True),
    "text-row": TextImage(256, Axial((60, 64), "row", causal=True, wrap=True)),
    "text-column": TextImage(256, Axial((60, 64), "column", causal=True)),
    "text-conv": TextImage(256, Neighborhood((60, 64), 11, causal="raster")),
}
"""Every family of causal patterns, at 4,096 tokens."""


def _causal_case(run_names: tuple[str, ...] = ("forward", "training")) -> Case:
    def make(contender: str, run: str, device: str) -> Job:
        qkv = tensors(1, 4096, "float32", run, device)
        if contender == "dense":
            return job(lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=True), qkv)
        return job(lambda q, k, v: attend(q, k, v, CAUSAL[contender]), qkv)

    title = "each family of causal patterns, 4,096 tokens, beside dense causal attention"
    return Case(
        "causal",
        f"{title}; batch 1, {HEADS} heads of {DIM}, float32",
        (*CAUSAL, "dense"),
        make,
        runs=run_names,
        seconds=6.0,
    )


CASES = [
    pattern_case(
        "window-8192",
        "window of 256 in 8,192 tokens, beside dense causal attention",
        WINDOW,
        8192,
        quick=True,
        seconds=3.5,
    ),
    pattern_case(
        "window-8192-bf16",
        "window of 256 in 8,192 tokens, beside dense causal attention",
        WINDOW,
        8192,
        dtype="bfloat16",
        seconds=3.5,
    ),
    *(
        pattern_case(
            f"dalle-conv-{kernel}",
            f"256 words and 32 x 32 image tokens, convolution of {kernel}, beside dense attention",
            pattern,
            1280,
            batch=4,
            quick=kernel == 5,
        )
        for kernel, pattern in DALLE.items()
    ),
    *(
        pattern_case(
            f"halo-core{'-bf16' if dtype == 'bfloat16' else ''}",
            "64 x 64 pixels in blocks of 8 with a halo of 4, beside dense attention",
            HALO,
            4096,
            dtype=dtype,
            quick=dtype == "float32",
            seconds=2.0,
        )
        for dtype in ("float32", "bfloat16")
    ),
    _causal_case(),
    *(
        pattern_case(
            f"length-{length:05}",
            f"window of 256 in {length:,} tokens, beside dense causal attention",
            WINDOW,
            length,
            contenders=("attend", "native", "tiled", "dense"),
            quick=length in (128, 1024),
            seconds=0.2,
        )
        for length in (128, 256, 512, 1024, 2048, 4096)
    ),
    *(
        pattern_case(
            f"full-{length:05}",
            f"dense causal attention over {length:,} tokens",
            Full(causal=True),
            length,
            contenders=("native", "dense"),
            seconds=length / 4000,
        )
        for length in (512, 2048, 8192)
    ),
]
