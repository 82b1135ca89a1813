"""Whether compiled FlexAttention is right on the device at hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from foveal.common.memo import remember
from foveal.ops.flex.op import flex_attend
from foveal.ops.operator import Attention
from foveal.ops.pyramid import pyramid_attend
from foveal.ops.tiled_op import tiled_attend
from foveal.ops.trust import agrees, ask_once
from foveal.patterns import Pattern

MOST_KEYS = 1024
"""Tokens of the problem that is tried, where the pattern bears a shorter sequence."""


def trusted(
    pattern: Pattern, length: int, dims: tuple[int, int], dtype: torch.dtype, device: str
) -> bool:
    """Whether a small problem gives the results and gradients of `tiled`, asked once a process.

    Lengths are dynamic in the compiled kernel, so that the real problem uses it again.
    """
    whole = getattr(pattern, "query_stride", 1) > 1  # has queries for a whole image only
    return _trusted(pattern, length if whole else min(length, MOST_KEYS), *dims, dtype, device)


@ask_once
@remember(entries=256)
def _trusted(
    pattern: Pattern,
    n_keys: int,
    head_dim: int,
    value_dim: int,
    dtype: torch.dtype,
    device: str,
) -> bool:
    engine, reference = flex_attend, tiled_attend
    if pattern.pools:
        engine, reference = (_on_pooled(one) for one in (engine, reference))
    dims, name = (head_dim, value_dim), "compiled FlexAttention"
    return agrees(name, engine, pattern, n_keys, dims, dtype, device, reference=reference)


def _on_pooled(engine: Attention) -> Attention:
    def attention(
        q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, *_: Any
    ) -> tuple[Tensor, Tensor]:
        return pyramid_attend(q, k, v, pattern, engine=engine)

    return attention  # type: ignore[return-value]
