"""Attention by an explicit layout of blocks, with DeepSpeed's families of layouts."""

from __future__ import annotations

import ctypes
import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from foveal.common.checks import check_dense
from foveal.common.constant import constant_of
from foveal.patterns import layouts
from foveal.patterns.base import HeadMask, Overlap, Pattern
from foveal.patterns.block_tiles import block_groups
from foveal.patterns.tiling import Tiling


@dataclass(frozen=True, repr=False)
class BlockSparse(Pattern):
    """Blocks of queries read the blocks of keys that a layout names.

    Args:
        layout: (num_blocks, num_blocks) or (heads, num_blocks, num_blocks), nonzero = read; rows
            are blocks of queries. Heads that all agree are folded into one. The layout is copied.
        block_size: tokens in a block. A sequence may be shorter than the layout, and need not
            fill its last block.
        causal: inside the layout, read the past only, token by token.

    Raises:
        ValueError: the layout is not square, or block_size is not a positive int.

    Two patterns are equal when their contents are. The class methods build the layouts of
    DeepSpeed's `SparsityConfig` classes under their keyword names (`block` is `block_size`), with
    `length` rounded up to whole blocks. DeepSpeed leaves the cut inside diagonal blocks to its
    caller; here `attention="unidirectional"` makes the pattern causal unless `causal=` says
    otherwise.
    """

    layout: Tensor
    block_size: int
    causal: bool = False

    opaque = True  # the layout is a tensor

    # derived: the layout without blocks that lie in the future altogether, and copies by device
    _read: Tensor = field(init=False, repr=False, metadata={"derived": True})
    _copies: dict[str, Tensor] = field(init=False, repr=False, metadata={"derived": True})

    def __post_init__(self) -> None:
        self._check_ints(1, "block_size")
        self._check_bools("causal")
        layout = _as_layout(self.layout)
        if layout.dim() not in (2, 3) or layout.shape[-1] != layout.shape[-2]:
            raise ValueError(
                "layout must be (num_blocks, num_blocks) or (heads, num_blocks, num_blocks), got "
                f"shape {tuple(layout.shape)}."
            )
        if layout.dim() == 3:
            if not len(layout):
                raise ValueError("layout must have at least one head, got 0 heads.")
            if bool((layout == layout[:1]).all()):
                layout = layout[0]
        layout = layout.clone(memory_format=torch.contiguous_format)
        read = layout.tril() if self.causal else layout
        object.__setattr__(self, "layout", layout)
        object.__setattr__(self, "_read", read)
        object.__setattr__(self, "_copies", {"cpu": read})

    # -- identity -----------------------------------------------------------------------------

    @functools.cached_property
    def _fingerprint(self) -> str:
        content = ctypes.string_at(self.layout.data_ptr(), self.layout.numel())
        shape = repr(tuple(self.layout.shape)).encode()
        return hashlib.sha256(shape + content).hexdigest()

    @property
    def digest(self) -> str:
        """Short fingerprint of the layout's content."""
        return self._fingerprint[:16]

    def _contents(self) -> dict[str, Any]:
        derived = {"_read": None, "_copies": None}
        return {**super()._contents(), **derived, "layout": self._fingerprint}

    def __repr__(self) -> str:
        size = "x".join(map(str, self.layout.shape))
        return (
            f"BlockSparse(layout={size}:{self.digest[:8]}, block_size={self.block_size}, "
            f"causal={self.causal})"
        )

    # -- heads --------------------------------------------------------------------------------

    @property
    def heads(self) -> int | None:
        return len(self.layout) if self.layout.dim() == 3 else None

    def per_head(self) -> tuple[Pattern, ...]:
        if self.heads is None:
            return (self,)
        _know_heads(self)
        return self._by_head

    @functools.cached_property
    def _by_head(self) -> tuple[Pattern, ...]:
        return tuple(BlockSparse(one, self.block_size, self.causal) for one in self.layout)

    def in_head(self, device: torch.device | str | None = None) -> HeadMask:
        self._on(torch.device(device or "cpu"))  # before a compiler traces what is asked
        return self.allows_in_head

    # -- definition ---------------------------------------------------------------------------

    @property
    def num_blocks(self) -> int:
        return self.layout.shape[-1]

    def _on(self, device: torch.device) -> Tensor:
        found = self._copies.get(str(device))
        if found is None:
            found = self._copies[str(device)] = self._read.to(device)
        return found

    @property
    def natural_length(self) -> int:
        return self.num_blocks * self.block_size

    def check_length(self, length: int) -> None:
        super().check_length(length)
        most = self.natural_length
        if length > most:
            raise ValueError(
                f"length must be at most num_blocks * block_size = {most}, got {length=}; "
                "build the layout for the longest sequence."
            )

    def allows(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        row, column = q_idx // self.block_size, k_idx // self.block_size
        layout = self._on(q_idx.device)
        on = layout[row, column] if self.heads is None else layout[:, row, column]
        return on & (k_idx <= q_idx) if self.causal else on

    def allows_in_head(self, head: Tensor, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        """`allows` for one head each: all arguments broadcast, and no dimension is added."""
        layout = self._on(q_idx.device)
        row, column = q_idx // self.block_size, k_idx // self.block_size
        on = layout[row, column] if self.heads is None else layout[head, row, column]
        return on & (k_idx <= q_idx) if self.causal else on

    @functools.cached_property
    def _counts(self) -> Tensor:
        """Blocks that are on above and to the left of each corner: (..., nb + 1, nb + 1)."""
        padded = torch.nn.functional.pad(self._read.long(), (1, 0, 1, 0))
        return padded.cumsum(-1).cumsum(-2)

    def overlap(self, q_first: Tensor, q_last: Tensor, k_first: Tensor, k_last: Tensor) -> Overlap:
        device, size = q_first.device, self.block_size
        top, bottom = q_first // size, q_last // size + 1
        left, right = k_first // size, k_last // size + 1
        sums = self._counts.to(device)
        on = sums[..., bottom, right] - sums[..., top, right]
        on = on - sums[..., bottom, left] + sums[..., top, left]
        some, every = on > 0, on == (bottom - top) * (right - left)
        if self.causal:
            return some & (k_first <= q_last), every & (k_last <= q_first)
        return some, every

    # -- plan ---------------------------------------------------------------------------------

    def _tiles(self, length: int) -> Tiling:
        groups = block_groups(self._read, self.block_size, length, self.causal, self.allows)
        return Tiling(length, length, tuple(groups))

    # -- decoding -----------------------------------------------------------------------------

    def _tokens(self, columns: Tensor, stop: int) -> Tensor:
        starts = columns.nonzero()[:, 0] * self.block_size
        keys = (starts[:, None] + torch.arange(self.block_size, device="cpu")).reshape(-1)
        return keys[keys < stop]

    @functools.cached_property
    def _any_head(self) -> Tensor:
        return self._read if self.heads is None else self._read.any(0)

    def reads(self, position: int) -> Tensor:
        """Keys that a token at `position` reads, ascending; with `heads`, in any of them."""
        self._require_causal("reads")
        self.check_length(position + 1)
        return self._tokens(self._any_head[position // self.block_size], position + 1)

    def keeps(self, position: int) -> Tensor:
        self._require_causal("keeps")
        self.check_length(position + 1)
        to_come = self._any_head[(position + 1) // self.block_size :]
        return self._tokens(to_come.any(0), position + 1)

    def horizon(self) -> tuple[int, int] | None:
        """The cheapest split of the layout into leading blocks and a window that follows."""
        if not self.causal or not self.num_blocks:
            return None
        rows = torch.arange(1, self.num_blocks + 1, device="cpu")
        last_row = (self._any_head * rows[:, None]).amax(0)  # 0 where no row reads the column
        back = (last_row - rows + 1).clamp(min=0)
        window = torch.cat([back.flip(0).cummax(0).values.flip(0), back.new_zeros(1)])
        prefix = int((window + torch.arange(self.num_blocks + 1, device="cpu")).argmin())
        return prefix * self.block_size, int(window[prefix]) * self.block_size

    def num_pairs(self, length: int) -> int:
        self.check_length(length)
        starts = torch.arange(self.num_blocks, device="cpu") * self.block_size
        sizes = (length - starts).clamp(0, self.block_size)
        pairs = int((self._read * sizes[:, None] * sizes).sum())
        if self.causal:  # a diagonal block holds size * (size - 1) / 2 pairs of the future
            diagonal = self._read.diagonal(dim1=-2, dim2=-1)
            pairs -= int((diagonal * (sizes * (sizes - 1) // 2)).sum())
        return pairs

    # -- DeepSpeed's layouts ------------------------------------------------------------------

    @classmethod
    def fixed(
        cls,
        length: int,
        block_size: int = 16,
        *,
        num_heads: int = 1,
        different_layout_per_head: bool = False,
        num_local_blocks: int = 4,
        num_global_blocks: int = 1,
        attention: str = "bidirectional",
        horizontal_global_attention: bool = False,
        num_different_global_patterns: int = 1,
        causal: bool | None = None,
    ) -> BlockSparse:
        """`FixedSparsityConfig`: local windows, whose last blocks are visible to all.

        Raises:
            ValueError: counts that do not fit each other; horizontal_global_attention with
                "unidirectional"; several global patterns without different_layout_per_head.
        """
        if num_different_global_patterns > 1 and not different_layout_per_head:
            raise ValueError(
                "num_different_global_patterns above 1 needs different_layout_per_head=True, got "
                f"{num_different_global_patterns=}, {different_layout_per_head=}."
            )
        layout = layouts.fixed_layout(
            layouts.count_blocks(length, block_size),
            num_heads=layouts.count_layouts(num_heads, different_layout_per_head),
            num_local_blocks=num_local_blocks,
            num_global_blocks=num_global_blocks,
            attention=attention,
            horizontal_global_attention=horizontal_global_attention,
            num_different_global_patterns=num_different_global_patterns,
        )
        return cls(layout, block_size, _is_causal(causal, attention))

    @classmethod
    def variable(
        cls,
        length: int,
        block_size: int = 16,
        *,
        num_heads: int = 1,
        different_layout_per_head: bool = False,
        num_random_blocks: int = 0,
        local_window_blocks: Sequence[int] = (4,),
        global_block_indices: Sequence[int] = (0,),
        global_block_end_indices: Sequence[int] | None = None,
        attention: str = "bidirectional",
        horizontal_global_attention: bool = False,
        seed: int = 0,
        causal: bool | None = None,
    ) -> BlockSparse:
        """`VariableSparsityConfig`: windows of several sizes, global and random blocks.

        Raises:
            ValueError: horizontal_global_attention with "unidirectional", more random blocks than
                a row has, or global ends that do not match their starts.
        """
        layout = layouts.variable_layout(
            layouts.count_blocks(length, block_size),
            num_heads=layouts.count_layouts(num_heads, different_layout_per_head),
            num_random_blocks=num_random_blocks,
            local_window_blocks=local_window_blocks,
            global_block_indices=global_block_indices,
            global_block_end_indices=global_block_end_indices,
            attention=attention,
            horizontal_global_attention=horizontal_global_attention,
            seed=seed,
        )
        return cls(layout, block_size, _is_causal(causal, attention))

    @classmethod
    def bigbird(
        cls,
        length: int,
        block_size: int = 16,
        *,
        num_heads: int = 1,
        different_layout_per_head: bool = False,
        num_random_blocks: int = 1,
        num_sliding_window_blocks: int = 3,
        num_global_blocks: int = 1,
        attention: str = "bidirectional",
        seed: int = 0,
        causal: bool | None = None,
    ) -> BlockSparse:
        """`BigBirdSparsityConfig`: sliding window, global first blocks, random blocks.

        Raises:
            ValueError: more random blocks than a row has; more than one with "unidirectional",
                for the first row has only itself.
        """
        layout = layouts.bigbird_layout(
            layouts.count_blocks(length, block_size),
            num_heads=layouts.count_layouts(num_heads, different_layout_per_head),
            num_random_blocks=num_random_blocks,
            num_sliding_window_blocks=num_sliding_window_blocks,
            num_global_blocks=num_global_blocks,
            attention=attention,
            seed=seed,
        )
        return cls(layout, block_size, _is_causal(causal, attention))

    @classmethod
    def longformer(
        cls,
        length: int,
        block_size: int = 16,
        *,
        num_sliding_window_blocks: int = 3,
        global_block_indices: Sequence[int] = (0,),
        global_block_end_indices: Sequence[int] | None = None,
        attention: str = "bidirectional",
        causal: bool | None = None,
    ) -> BlockSparse:
        """`BSLongformerSparsityConfig`: sliding window and global rows and columns.

        Raises:
            ValueError: global ends do not match their starts, or a count is not positive.
        """
        layout = layouts.longformer_layout(
            layouts.count_blocks(length, block_size),
            num_sliding_window_blocks=num_sliding_window_blocks,
            global_block_indices=global_block_indices,
            global_block_end_indices=global_block_end_indices,
            attention=attention,
        )
        return cls(layout, block_size, _is_causal(causal, attention))

    @classmethod
    def sliding(
        cls,
        length: int,
        block_size: int = 16,
        *,
        num_sliding_window_blocks: int = 3,
        attention: str = "unidirectional",
        causal: bool | None = None,
    ) -> BlockSparse:
        """`LocalSlidingWindowSparsityConfig`: the window alone.

        Raises:
            ValueError: the window is not a positive number of blocks, or attention is unknown.
        """
        layout = layouts.sliding_layout(
            layouts.count_blocks(length, block_size),
            num_sliding_window_blocks=num_sliding_window_blocks,
            attention=attention,
        )
        return cls(layout, block_size, _is_causal(causal, attention))


@constant_of  # the compiler cannot follow into the lock of a cached property
def _know_heads(pattern: BlockSparse) -> bool:
    return bool(pattern._by_head)


def _is_causal(causal: bool | None, attention: str) -> bool:
    return attention == "unidirectional" if causal is None else causal


def _as_layout(layout: Any) -> Tensor:
    """A layout as bools of the CPU, whatever the default device is."""
    if not isinstance(layout, Tensor):
        try:
            layout = torch.tensor(layout, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"layout must be a tensor of blocks, got {layout!r}.") from error
    check_dense("layout", layout)
    if layout.device.type == "meta":
        raise ValueError("layout must hold values, got a tensor of the meta device.")
    values = layout.detach().to("cpu")
    if values.dtype != torch.bool and not torch.compiler.is_compiling():
        counts = (values >= 0) & (values % 1 == 0)  # nothing is left of infinity and NaN
        if not bool(counts.all()):
            raise ValueError(
                "layout must say of each block whether it is read, True or False, 1 or 0, got "
                "fractions, negative numbers, infinity or NaN; compare weights first: layout > 0."
            )
    return values.to(torch.bool)
