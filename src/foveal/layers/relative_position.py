"""Relative positions in two dimensions, factorised into rows and columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from foveal.common.arguments import checked
from foveal.common.symbols import known
from foveal.layers.checks import check_sizes
from foveal.layers.linear import linear
from foveal.layers.windows import fold
from foveal.patterns.sizes import pair

Size = int | tuple[int, int]
RelPosMode = Literal["sum", "split"]
MODES = ("sum", "split")


class RelPosEmb(nn.Module):
    """Logits of queries against embeddings of where a key stands relative to them.

    A query in row `r` of its block and a key in row `a` of the block's window meet entry
    `a - r + window - 1` of `rel_height`; columns and `rel_width` likewise. The two logits add up.
    The names and the layout of the tables are those of halonet-pytorch.

    Args:
        block_size: (height, width) of a block of queries, or an int.
        rel_size: (height, width) of the window of keys, or an int.
        dim_head: features of a query.
        mode: "sum" compares the whole query with both tables (halonet-pytorch, timm); "split"
            compares its first half with the rows and its second half with the columns, as in the
            paper (Vaswani et al. 2021, following Ramachandran et al. 2019).

    Raises:
        ValueError: an unknown mode, or an odd `dim_head` to split.
    """

    @checked
    def __init__(
        self, block_size: Size, rel_size: Size, dim_head: int, mode: RelPosMode = "sum"
    ) -> None:
        super().__init__()
        check_sizes(dim_head=dim_head)
        self.block_size = pair(block_size, "block_size")
        self.rel_size = pair(rel_size, "rel_size")
        if mode not in MODES:
            raise ValueError(f"mode must be 'sum' or 'split', got {mode=}.")
        if mode == "split" and dim_head % 2:
            raise ValueError(f"dim_head must be even to be split in halves, got {dim_head=}.")
        self.mode = mode
        self.dim_head = dim_head
        width = dim_head // 2 if mode == "split" else dim_head
        self.rel_height = nn.Parameter(torch.empty(2 * self.rel_size[0] - 1, width))
        self.rel_width = nn.Parameter(torch.empty(2 * self.rel_size[1] - 1, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw both tables from a normal distribution of standard deviation dim_head ** -0.5."""
        for table in (self.rel_height, self.rel_width):
            nn.init.normal_(table, std=self.dim_head**-0.5)

    def extra_repr(self) -> str:
        return f"block_size={self.block_size}, rel_size={self.rel_size}, mode={self.mode!r}"

    def forward(self, q: Tensor) -> Tensor:
        """Logits of whole blocks: q (batch, block pixels, dim_head) -> (batch, pixels, window)."""
        grid = q.unflatten(1, self.block_size).unsqueeze(3)
        rows, columns = self.window_logits(grid)
        logits = rows[:, 0, :, :, None] + columns[:, 0, :, None, :]
        return logits.flatten(2)

    def window_logits(
        self, q: Tensor, stride: int = 1, scale: float = 1.0, true_offsets: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Logits of every query of a map with the rows and the columns of its block's window.

        Args:
            q: (batch, height, width, heads, dim_head), the queries of a map; blocks start at its
                upper left corner.
            stride: pixels from one query to the next; divides the block.
            scale: factor of the logits.
            true_offsets: measure from the query's pixel; False measures from its place among
                the queries, as timm does when it strides.

        Returns:
            rows (batch, heads, height * width, window height), and columns likewise.
        """
        size = q.shape[1:3]
        q = fold(q, 1, 2).transpose(1, 2)  # one product a head
        tables = [
            table[window - block :] * scale
            for table, window, block in zip(
                (self.rel_height, self.rel_width), self.rel_size, self.block_size, strict=True
            )
        ]
        if self.mode == "split":
            pairs = zip(q.chunk(2, -1), tables, strict=True)
            logits = [linear(half, table) for half, table in pairs]
        else:
            logits = list(linear(q, torch.cat(tables)).split([len(t) for t in tables], -1))
        step = stride if true_offsets else 1
        rows, columns = (
            _windows(
                logits[axis].unflatten(2, size),
                axis + 2,
                [block - 1 - i * step for i in range(block // stride)],
                self.rel_size[axis],
            )
            for axis, block in enumerate(self.block_size)
        )
        return fold(rows, 2, 3), fold(columns, 2, 3)


def _windows(logits: Tensor, axis: int, starts: Sequence[int], length: int) -> Tensor:
    """Cut from each query's logits those of its window.

    logits (batch, heads, height, width, entries) -> (batch, heads, height, width, length), where
    the `i`-th query of a block along `axis` takes entries from `starts[i]`.
    """
    n, period = logits.shape[axis], len(starts)
    if not known(n):
        return _gathered(logits, axis, starts, length)
    blocks = -(-n // period)
    if n % period:
        tail = [0, 0] * (logits.ndim - 1 - axis) + [0, blocks * period - n]
        logits = nn.functional.pad(logits, tail)
    places = logits.unflatten(axis, (blocks, period)).unbind(axis + 1)
    cut = [x.narrow(-1, start, length) for x, start in zip(places, starts, strict=True)]
    return torch.stack(cut, axis + 1).flatten(axis, axis + 1).narrow(axis, 0, n)


def _gathered(logits: Tensor, axis: int, starts: Sequence[int], length: int) -> Tensor:
    """`_windows` in one step, for symbols: each step more asks a trace about sizes again."""
    n, behind = logits.shape[axis], logits.ndim - 2 - axis
    place = torch.arange(n, device=logits.device) % len(starts)
    index = torch.tensor(starts, device=logits.device)[place, None]
    index = index + torch.arange(length, device=logits.device)
    shape = [*logits.shape[:-1], length]
    return logits.gather(-1, index.view(n, *[1] * behind, length).expand(shape))
