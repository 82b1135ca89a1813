"""Block layouts of the sparse attention in DeepSpeed, rebuilt from their description.

Each function returns a bool tensor (heads, num_blocks, num_blocks): True where a block of queries
(row) reads a block of keys (column). Quirks are kept, since checkpoints were trained with them.
Differs from DeepSpeed in: random blocks come from a seed of their own, not from the global
generator (`random.seed(s)` there and `seed=s` here give the same layout), or from a generator that
is handed in as the seed, which moves on; a sliding window wider than a short row is the whole row
and no error.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from foveal.common.checks import as_bool
from foveal.patterns.sizes import check_int, check_positive

MOST_BLOCKS = 1 << 15
"""Blocks of a sequence; a layout of so many takes a gibibyte."""

DIRECTIONS = ("bidirectional", "unidirectional")


def fixed_layout(
    num_blocks: int,
    *,
    num_heads: int = 1,
    num_local_blocks: int = 4,
    num_global_blocks: int = 1,
    attention: str = "bidirectional",
    horizontal_global_attention: bool = False,
    num_different_global_patterns: int = 1,
) -> Tensor:
    """Windows of `num_local_blocks`, and the last blocks of each window visible to the others.

    Head `h` shows the group of blocks `h mod num_different_global_patterns` from the window's end.
    Quirks kept: "unidirectional" with more than one global block switches on blocks above the
    diagonal; fewer blocks than global ones count those from the end.
    """
    size, shown = num_local_blocks, num_global_blocks
    _check_fixed(
        size, shown, attention, horizontal_global_attention, num_different_global_patterns
    )
    one_way = attention == "unidirectional"
    layout = torch.zeros(num_heads, num_blocks, num_blocks, dtype=torch.bool, device="cpu")
    for head, grid in enumerate(layout):
        _local_windows(grid, [size], one_way)
        first = size - (1 + head % num_different_global_patterns) * shown
        whole = num_blocks - num_blocks % size
        starts = list(range(first, whole, size))
        if whole < num_blocks:  # the last, shorter window shows what it has
            starts.append(min(whole + first, num_blocks - shown))
        for start in starts:
            grid[start if one_way else 0 :, start : start + shown] = True
            if horizontal_global_attention:
                grid[start : start + shown] = True
    return layout


def _check_fixed(size: int, shown: int, attention: str, horizontal: bool, patterns: int) -> None:
    check_positive(
        num_local_blocks=size, num_global_blocks=shown, num_different_global_patterns=patterns
    )
    check_attention(attention, horizontal)
    if size % shown:
        raise ValueError(
            "num_local_blocks must be a multiple of num_global_blocks, got "
            f"num_local_blocks={size}, num_global_blocks={shown}."
        )
    if patterns > size // shown:
        raise ValueError(
            "num_different_global_patterns must be at most num_local_blocks // num_global_blocks "
            f"= {size // shown}, got num_different_global_patterns={patterns}."
        )


def variable_layout(
    num_blocks: int,
    *,
    num_heads: int = 1,
    num_random_blocks: int = 0,
    local_window_blocks: Sequence[int] = (4,),
    global_block_indices: Sequence[int] = (0,),
    global_block_end_indices: Sequence[int] | None = None,
    attention: str = "bidirectional",
    horizontal_global_attention: bool = False,
    seed: int | random.Random = 0,
) -> Tensor:
    """Windows of the listed sizes (the last one repeats), global blocks and random blocks.

    Quirk kept: random blocks are drawn from the whole row even when "unidirectional".
    """
    check_attention(attention, horizontal_global_attention)
    if not local_window_blocks:
        raise ValueError("local_window_blocks must name at least one window size, got none.")
    for size in local_window_blocks:
        check_positive(local_window_blocks=size)
    spans = _global_spans(global_block_indices, global_block_end_indices)
    one_way = attention == "unidirectional"
    draw = seed if isinstance(seed, random.Random) else random.Random(seed)
    layout = torch.zeros(num_heads, num_blocks, num_blocks, dtype=torch.bool, device="cpu")
    for grid in layout:
        _random_blocks(grid, num_random_blocks, draw)
        _local_windows(grid, local_window_blocks, one_way)
        for start, stop in spans:
            if start < num_blocks:
                if horizontal_global_attention:
                    grid[start:stop] = True
                grid[start if one_way else 0 :, start:stop] = True
    return layout


def bigbird_layout(
    num_blocks: int,
    *,
    num_heads: int = 1,
    num_random_blocks: int = 1,
    num_sliding_window_blocks: int = 3,
    num_global_blocks: int = 1,
    attention: str = "bidirectional",
    seed: int | random.Random = 0,
) -> Tensor:
    """A sliding window, the first blocks read by and reading everything, and random blocks."""
    check_attention(attention)
    check_int("num_global_blocks", num_global_blocks, 0)
    one_way = attention == "unidirectional"
    draw = seed if isinstance(seed, random.Random) else random.Random(seed)
    layout = torch.zeros(num_heads, num_blocks, num_blocks, dtype=torch.bool, device="cpu")
    for grid in layout:
        _random_blocks(grid, num_random_blocks, draw, past_only=one_way)
        _sliding_window(grid, num_sliding_window_blocks)
        grid[:num_global_blocks] = True
        grid[:, :num_global_blocks] = True
    return layout.tril() if one_way else layout


def longformer_layout(
    num_blocks: int,
    *,
    num_sliding_window_blocks: int = 3,
    global_block_indices: Sequence[int] = (0,),
    global_block_end_indices: Sequence[int] | None = None,
    attention: str = "bidirectional",
) -> Tensor:
    """A sliding window and the listed blocks, which read everything and are read by everything."""
    check_attention(attention)
    grid = torch.zeros(num_blocks, num_blocks, dtype=torch.bool, device="cpu")
    _sliding_window(grid, num_sliding_window_blocks)
    for start, stop in _global_spans(global_block_indices, global_block_end_indices):
        if start < num_blocks:
            grid[start:stop] = True
            grid[:, start:stop] = True
    return (grid.tril() if attention == "unidirectional" else grid)[None]


def sliding_layout(
    num_blocks: int, *, num_sliding_window_blocks: int = 3, attention: str = "unidirectional"
) -> Tensor:
    """A sliding window alone: half of it on each side, or the earlier half only."""
    check_attention(attention)
    grid = torch.zeros(num_blocks, num_blocks, dtype=torch.bool, device="cpu")
    _sliding_window(grid, num_sliding_window_blocks)
    return (grid.tril() if attention == "unidirectional" else grid)[None]


def count_blocks(length: int, block_size: int) -> int:
    """Blocks that hold `length` tokens, the last one perhaps in part."""
    check_positive(length=length, block_size=block_size)
    count = -(-length // block_size)
    if count > MOST_BLOCKS:
        raise ValueError(
            f"length must be at most {MOST_BLOCKS} blocks, for a layout lists all pairs of them; "
            f"got {length=}, {block_size=}."
        )
    return count


def count_layouts(num_heads: int, different_layout_per_head: bool) -> int:
    """Layouts to build: one for each head, or one for all."""
    check_positive(num_heads=num_heads)
    as_bool("different_layout_per_head", different_layout_per_head)
    return num_heads if different_layout_per_head else 1


# -- pieces -----------------------------------------------------------------------------------


def check_attention(attention: str, horizontal: bool = False) -> None:
    """Raise ValueError for an unknown direction, or rows of global blocks that see the future."""
    if attention not in DIRECTIONS:
        raise ValueError(f"attention must be one of {DIRECTIONS}, got {attention=}.")
    if as_bool("horizontal_global_attention", horizontal) and attention == "unidirectional":
        raise ValueError(
            "horizontal_global_attention must be False with attention='unidirectional', "
            "got True: a global row reads the future; use attention='bidirectional'."
        )


def _local_windows(grid: Tensor, sizes: Sequence[int], one_way: bool) -> None:
    """Windows on the diagonal, in place: full, or each row up to itself when one_way."""
    start = window = 0
    while start < len(grid):
        stop = min(start + sizes[min(window, len(sizes) - 1)], len(grid))
        inside = torch.ones(stop - start, stop - start, dtype=torch.bool, device="cpu")
        grid[start:stop, start:stop] |= inside.tril() if one_way else inside
        start, window = stop, window + 1


def _sliding_window(grid: Tensor, num_sliding_window_blocks: int) -> None:
    check_positive(num_sliding_window_blocks=num_sliding_window_blocks)
    reach = num_sliding_window_blocks // 2
    row = torch.arange(len(grid), device="cpu")
    grid |= (row[:, None] - row[None, :]).abs() <= reach


def _random_blocks(grid: Tensor, count: int, draw: random.Random, past_only: bool = False) -> None:
    check_int("num_random_blocks", count, 0)
    if count > len(grid):
        raise ValueError(
            f"num_random_blocks must be at most the {len(grid)} blocks of a row, got "
            f"num_random_blocks={count}; lengthen the sequence or shrink block_size."
        )
    if past_only and count > 1:
        raise ValueError(
            "num_random_blocks must be at most 1 with attention='unidirectional', got "
            f"num_random_blocks={count}: the first row has only itself to draw from."
        )
    for row in range(len(grid)):
        grid[row, draw.sample(range(row + 1 if past_only else len(grid)), count)] = True


def _global_spans(starts: Sequence[int], stops: Sequence[int] | None) -> list[tuple[int, int]]:
    """Half-open spans of global blocks: single indices, or [start, stop) pairs."""
    if stops is None:
        return [(start, start + 1) for start in starts]
    if len(starts) != len(stops):
        raise ValueError(
            "global_block_end_indices must be as many as global_block_indices, got "
            f"{len(stops)} and {len(starts)}."
        )
    for start, stop in zip(starts, stops, strict=True):
        if start >= stop:
            raise ValueError(
                "each of global_block_end_indices must lie behind its start (end exclusive), "
                f"got start={start}, end={stop}."
            )
    return list(zip(starts, stops, strict=True))
