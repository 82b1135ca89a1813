"""What the processor at hand can do."""

from __future__ import annotations

import functools

import torch


@functools.lru_cache(maxsize=1)
def multiplies_bfloat16() -> bool:
    """Whether it multiplies pairs of bfloat16 (avx512_bf16), twice as fast as float32."""
    ask = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(ask and ask())
