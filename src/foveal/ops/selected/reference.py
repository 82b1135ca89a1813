"""impl="reference": the blocks that are named, as a dense mask. The definition of the others."""

from __future__ import annotations

import torch
from torch import Tensor

from foveal.ops.reference import masked_attention
from foveal.ops.selected.operands import Operands


def forward(x: Operands) -> tuple[Tensor, Tensor]:
    """out (batch, heads, n_queries, head_dim_v) and lse (batch, heads, n_queries)."""
    x.check_blocks()
    return masked_attention(
        x.q,
        x.k,
        x.v,
        mask_of(x),
        key_mask=x.key_mask,
        scale=x.scale,
        softcap=x.softcap or None,
    )


def mask_of(x: Operands) -> Tensor:
    """Who reads whom: (batch, heads, n_queries, n_keys) bool."""
    none = x.num_blocks
    blocks = x.blocks.long()
    named = torch.zeros(*blocks.shape[:3], none + 1, dtype=torch.bool, device=blocks.device)
    named = named.scatter(3, blocks.masked_fill(blocks < 0, none), True)[..., :none]
    mask = named.repeat_interleave(x.block_size, 3)[..., : x.k.shape[2]]
    mask = mask.repeat_interleave(x.query_block, 2)[:, :, : x.q.shape[2]]
    if x.causal:
        queries = x.first + torch.arange(x.q.shape[2], device=blocks.device)
        mask = mask & (torch.arange(x.k.shape[2], device=blocks.device) <= queries[:, None])
    return mask.repeat_interleave(x.repeats, 1)
