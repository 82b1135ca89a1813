"""FlexAttention's view of a pattern, from block borders instead of n^2 pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from foveal.common.checks import check_sizes

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def analytic_block_mask(
    pattern: Any, length: int, block: int = 128, device: torch.device | str | None = None
) -> BlockMask:
    """FlexAttention's BlockMask for a self-attention of `length` tokens.

    `pattern.overlap` on the borders of the (length / block)^2 blocks says which blocks are empty,
    full or partial; pairs inside partial blocks are left to `pattern.allows` when the kernel runs.
    Where `overlap` is cautious a block counts as partial, which costs time and changes nothing.

    Args:
        pattern: any Pattern, whose file imports this one; one with `heads` gives a mask of that
            many heads.
        length: tokens; need not be a multiple of `block`.
        block: tokens of a block of queries and of keys.
        device: where the mask will be used.

    Raises:
        ValueError: block is not a positive int, or length does not suit the pattern.
    """
    check_sizes(block=block)
    pattern.check_length(length)
    num_queries = pattern.num_queries(length)
    (q_first, q_last), (k_first, k_last) = (_borders(n, block) for n in (num_queries, length))
    q_first, q_last = q_first[:, None], q_last[:, None]
    some, every = pattern.overlap(q_first, q_last, k_first, k_last)
    # FlexAttention counts a block cut by the end of the sequence as partial
    every = every & some & (q_last - q_first + 1 == block) & (k_last - k_first + 1 == block)
    shape = (pattern.heads or 1, len(q_first), len(k_first))
    return to_block_mask(
        (some & ~every).expand(shape),
        every.expand(shape),
        block,
        mask_mod(pattern, device),
        (num_queries, length),
        device,
    )


def to_block_mask(
    partial: Tensor,
    full: Tensor,
    block: int,
    allowed: MaskMod,
    lengths: tuple[int, int],
    device: torch.device | str | None,
) -> BlockMask:
    """BlockMask of `lengths` queries and keys from its partial and its full blocks.

    partial, full: (query blocks, key blocks) bool, with or without a leading dimension of heads.
    allowed: tells the pairs inside partial blocks.
    """
    from torch.nn.attention.flex_attention import BlockMask

    parts = [
        _in_order(blocks.reshape(1, -1, *blocks.shape[-2:]), device) for blocks in (partial, full)
    ]
    return BlockMask.from_kv_blocks(
        *parts[0], *parts[1], BLOCK_SIZE=block, mask_mod=allowed, seq_lengths=lengths
    )


def _borders(length: int, block: int) -> tuple[Tensor, Tensor]:
    """First and last position of each block."""
    first = torch.arange(0, length, block, device="cpu")
    return first, (first + block - 1).clamp(max=max(0, length - 1))


def mask_mod(pattern: Any, device: torch.device | str | None = None) -> MaskMod:
    """`pattern.allows` with the signature that FlexAttention asks for, to be used on `device`."""
    allowed_in_head = pattern.in_head(device)
    # once outside of any tracing, so that layouts already lie on the device when it begins
    allowed_in_head(*torch.zeros(3, 1, dtype=torch.long, device=device).unbind())

    def allowed(batch: Tensor, head: Tensor, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        return allowed_in_head(head, q_idx, k_idx)

    return allowed


def _in_order(blocks: Tensor, device: torch.device | str | None) -> tuple[Tensor, Tensor]:
    """How many blocks are on in each row, and their columns first: both int32."""
    count = blocks.sum(-1, dtype=torch.int32)
    index = blocks.int().argsort(dim=-1, descending=True, stable=True).to(torch.int32)
    return count.to(device), index.to(device).contiguous()
