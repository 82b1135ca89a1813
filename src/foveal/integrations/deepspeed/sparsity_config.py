"""DeepSpeed's descriptions of block-sparse layouts: its signatures, its layouts to the bit."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from foveal.common.checks import as_bool, as_int
from foveal.patterns import layouts


class SparsityConfig:
    """What all layouts share; a layout of your own overrides `make_layout`.

    Args:
        num_heads: heads of the attention.
        block: tokens in a block.
        different_layout_per_head: whether each head has a layout of its own.

    Raises:
        ValueError: a number is not positive.
    """

    def __init__(
        self, num_heads: int, block: int = 16, different_layout_per_head: bool = False
    ) -> None:
        self.num_heads = as_int("num_heads", num_heads, 1)
        self.block = as_int("block", block, 1)
        self.different_layout_per_head = as_bool(
            "different_layout_per_head", different_layout_per_head
        )
        self.num_layout_heads = layouts.count_layouts(num_heads, different_layout_per_head)

    def make_layout(self, seq_len: int) -> Tensor:
        """The blocks that are read: (num_heads, blocks of queries, blocks of keys) int64.

        Raises:
            ValueError: seq_len is not a multiple of the block, or too short for the layout.
        """
        layout = self.setup_layout(seq_len)
        blocks = self._blocks(layout.shape[1])
        layout[: len(blocks)] = blocks
        return self.check_and_propagate_first_head_layout(layout)

    def setup_layout(self, seq_len: int) -> Tensor:
        """A layout of the right shape in which nothing is read yet."""
        seq_len = as_int("seq_len", seq_len, 1)
        if seq_len % self.block:
            raise ValueError(f"seq_len must be a multiple of block={self.block}, got {seq_len=}.")
        count = layouts.count_blocks(seq_len, self.block)
        return torch.zeros(self.num_heads, count, count, dtype=torch.int64, device="cpu")

    def check_and_propagate_first_head_layout(self, layout: Tensor) -> Tensor:
        """The layout of the first head for all of them, unless each has its own."""
        if not self.different_layout_per_head:
            layout[1:] = layout[0].clone()
        return layout

    def _blocks(self, num_blocks: int) -> Tensor:
        """(1 or num_heads, num_blocks, num_blocks) bool."""
        raise NotImplementedError(
            f"{type(self).__name__} describes no layout; use FixedSparsityConfig or another one, "
            "or override make_layout(seq_len)."
        )


class DenseSparsityConfig(SparsityConfig):
    """All blocks."""

    def _blocks(self, num_blocks: int) -> Tensor:
        return torch.ones(1, num_blocks, num_blocks, dtype=torch.bool, device="cpu").expand(
            self.num_heads, -1, -1
        )


class FixedSparsityConfig(SparsityConfig):
    """Local windows, whose last blocks are visible to all: `BlockSparse.fixed`.

    Raises:
        ValueError: counts that do not fit each other; horizontal_global_attention with
            "unidirectional"; several global patterns without different_layout_per_head.
    """

    def __init__(
        self,
        num_heads: int,
        block: int = 16,
        different_layout_per_head: bool = False,
        num_local_blocks: int = 4,
        num_global_blocks: int = 1,
        attention: str = "bidirectional",
        horizontal_global_attention: bool = False,
        num_different_global_patterns: int = 1,
    ) -> None:
        super().__init__(num_heads, block, different_layout_per_head)
        self.num_local_blocks = num_local_blocks
        self.num_global_blocks = num_global_blocks
        self.attention = attention
        self.horizontal_global_attention = horizontal_global_attention
        self.num_different_global_patterns = num_different_global_patterns
        if num_different_global_patterns > 1 and not different_layout_per_head:
            raise ValueError(
                "num_different_global_patterns above 1 needs different_layout_per_head=True, got "
                f"{num_different_global_patterns=}."
            )
        self._blocks(1)  # whether the rest fits

    def _blocks(self, num_blocks: int) -> Tensor:
        return layouts.fixed_layout(
            num_blocks,
            num_heads=self.num_layout_heads,
            num_local_blocks=self.num_local_blocks,
            num_global_blocks=self.num_global_blocks,
            attention=self.attention,
            horizontal_global_attention=self.horizontal_global_attention,
            num_different_global_patterns=self.num_different_global_patterns,
        )


class VariableSparsityConfig(SparsityConfig):
    """Windows of several sizes, global and random blocks: `BlockSparse.variable`.

    Random blocks are drawn from Python's own generator, as DeepSpeed does: random.seed decides.

    Raises:
        ValueError: horizontal_global_attention with "unidirectional", or global ends that do not
            match their starts.
    """

    def __init__(
        self,
        num_heads: int,
        block: int = 16,
        different_layout_per_head: bool = False,
        num_random_blocks: int = 0,
        local_window_blocks: Sequence[int] = (4,),
        global_block_indices: Sequence[int] = (0,),
        global_block_end_indices: Sequence[int] | None = None,
        attention: str = "bidirectional",
        horizontal_global_attention: bool = False,
    ) -> None:
        super().__init__(num_heads, block, different_layout_per_head)
        self.num_random_blocks = as_int("num_random_blocks", num_random_blocks, 0)
        self.local_window_blocks = local_window_blocks
        self.global_block_indices = global_block_indices
        self.global_block_end_indices = global_block_end_indices
        self.attention = attention
        self.horizontal_global_attention = horizontal_global_attention
        self._drawn(1, 0)

    def _blocks(self, num_blocks: int) -> Tensor:
        return self._drawn(num_blocks, self.num_random_blocks)

    def _drawn(self, num_blocks: int, num_random_blocks: int) -> Tensor:
        with _generator() as draw:
            return layouts.variable_layout(
                num_blocks,
                num_heads=self.num_layout_heads,
                num_random_blocks=num_random_blocks,
                local_window_blocks=self.local_window_blocks,
                global_block_indices=self.global_block_indices,
                global_block_end_indices=self.global_block_end_indices,
                attention=self.attention,
                horizontal_global_attention=self.horizontal_global_attention,
                seed=draw,
            )


class BigBirdSparsityConfig(SparsityConfig):
    """A sliding window, global first blocks, random blocks: `BlockSparse.bigbird`.

    Random blocks are drawn from Python's own generator, as DeepSpeed does: random.seed decides.

    Raises:
        ValueError: a count is negative, or attention is unknown.
    """

    def __init__(
        self,
        num_heads: int,
        block: int = 16,
        different_layout_per_head: bool = False,
        num_random_blocks: int = 1,
        num_sliding_window_blocks: int = 3,
        num_global_blocks: int = 1,
        attention: str = "bidirectional",
    ) -> None:
        super().__init__(num_heads, block, different_layout_per_head)
        self.num_random_blocks = as_int("num_random_blocks", num_random_blocks, 0)
        self.num_sliding_window_blocks = num_sliding_window_blocks
        self.num_global_blocks = num_global_blocks
        self.attention = attention
        self._drawn(1, 0)

    def _blocks(self, num_blocks: int) -> Tensor:
        return self._drawn(num_blocks, self.num_random_blocks)

    def _drawn(self, num_blocks: int, num_random_blocks: int) -> Tensor:
        with _generator() as draw:
            return layouts.bigbird_layout(
                num_blocks,
                num_heads=self.num_layout_heads,
                num_random_blocks=num_random_blocks,
                num_sliding_window_blocks=self.num_sliding_window_blocks,
                num_global_blocks=self.num_global_blocks,
                attention=self.attention,
                seed=draw,
            )


class BSLongformerSparsityConfig(SparsityConfig):
    """A sliding window, and global rows and columns: `BlockSparse.longformer`.

    Raises:
        ValueError: global ends do not match their starts, or attention is unknown.
    """

    def __init__(
        self,
        num_heads: int,
        block: int = 16,
        different_layout_per_head: bool = False,
        num_sliding_window_blocks: int = 3,
        global_block_indices: Sequence[int] = (0,),
        global_block_end_indices: Sequence[int] | None = None,
        attention: str = "bidirectional",
    ) -> None:
        super().__init__(num_heads, block, different_layout_per_head)
        self.num_sliding_window_blocks = num_sliding_window_blocks
        self.global_block_indices = global_block_indices
        self.global_block_end_indices = global_block_end_indices
        self.attention = attention
        self._blocks(1)

    def _blocks(self, num_blocks: int) -> Tensor:
        layout = layouts.longformer_layout(
            num_blocks,
            num_sliding_window_blocks=self.num_sliding_window_blocks,
            global_block_indices=self.global_block_indices,
            global_block_end_indices=self.global_block_end_indices,
            attention=self.attention,
        )
        return layout.expand(self.num_layout_heads, -1, -1)


class LocalSlidingWindowSparsityConfig(SparsityConfig):
    """The window alone: `BlockSparse.sliding`.

    Raises:
        ValueError: the window is not a positive number of blocks, or attention is unknown.
    """

    def __init__(
        self,
        num_heads: int,
        block: int = 16,
        num_sliding_window_blocks: int = 3,
        attention: str = "unidirectional",
    ) -> None:
        super().__init__(num_heads, block)
        self.num_sliding_window_blocks = num_sliding_window_blocks
        self.attention = attention
        self._blocks(1)

    def _blocks(self, num_blocks: int) -> Tensor:
        return layouts.sliding_layout(
            num_blocks,
            num_sliding_window_blocks=self.num_sliding_window_blocks,
            attention=self.attention,
        )


@contextlib.contextmanager
def _generator() -> Iterator[random.Random]:
    """Python's own generator as an object, which moves on by what is drawn."""
    draw = random.Random()
    draw.setstate(random.getstate())
    yield draw
    random.setstate(draw.getstate())
