"""One call of attend_selected, as its engines take it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Operands(NamedTuple):
    """Tensors and options of a call; shapes as in `attend_selected`.

    The order is that of the arguments of the operators.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    blocks: Tensor
    key_mask: Tensor | None
    block_size: int
    query_block: int
    causal: bool
    first: int  # the token at which the first query stands
    scale: float
    softcap: float  # 0: none

    @property
    def num_tiles(self) -> int:
        return self.blocks.shape[2]

    @property
    def num_blocks(self) -> int:
        """Blocks that the keys have, the last of which may be shorter."""
        return -(-self.k.shape[2] // self.block_size)

    @property
    def repeats(self) -> int:
        """Query heads that share the keys of a head."""
        return self.q.shape[1] // self.k.shape[1]

    @property
    def sums(self) -> torch.dtype:
        """The precision of the arithmetic and of the log-sum-exp."""
        return torch.float64 if self.q.dtype == torch.float64 else torch.float32

    def check_blocks(self) -> None:
        """Raise ValueError where a block is named that the keys do not have.

        On a GPU, which is not waited for, it is an assertion there.
        """
        wrapped = torch._C._functorch.is_functorch_wrapped_tensor
        if torch.compiler.is_compiling() or wrapped(self.blocks) or not self.blocks.numel():
            return
        if self.blocks.device.type == "cuda":
            torch._assert_async((self.blocks < self.num_blocks).all())
        elif (most := int(self.blocks.amax())) >= self.num_blocks:
            raise ValueError(
                f"blocks must be below {self.num_blocks}, the blocks of {self.block_size} that "
                f"{self.k.shape[2]} keys have, got {most}; below 0 means no block."
            )


def in_order(x: Operands) -> Tensor:
    """The blocks that each tile reads, each once and in order, then `num_blocks` for none.

    (batch, kv_heads, tiles, count) int64; blocks of the future alone are left out.
    """
    none = x.num_blocks
    blocks = x.blocks.long()
    absent = blocks < 0
    if x.causal:
        ends = torch.arange(1, x.num_tiles + 1, device=blocks.device) * x.query_block
        last = x.first + ends.clamp(max=x.q.shape[2]) - 1
        absent = absent | (blocks * x.block_size > last[:, None])
    blocks = blocks.masked_fill(absent, none).sort(-1).values
    again = torch.zeros_like(blocks, dtype=torch.bool)
    again[..., 1:] = blocks[..., 1:] == blocks[..., :-1]
    return blocks.masked_fill(again, none).sort(-1).values
