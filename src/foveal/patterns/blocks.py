"""Chunked attention: tokens are cut into blocks that do not look at each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveal.patterns.image import Bounds, GridPattern, tile_shape
from foveal.patterns.sizes import MOST, each, each_bool, sides
from foveal.patterns.tiling import MAX_TILE, WHOLE_BLOCK


@dataclass(frozen=True)
class Blocks(GridPattern):
    """Each token reads its own block and `lookback` blocks before it.

    Without a size, blocks are chunks of a sequence of any length. With one they are boxes of a
    grid, as the windows of Swin (Liu et al., "Swin Transformer", 2021): there and shifted by half
    a window in every second layer.

    Args:
        block_size: tokens in a block, or on each axis of it; the last block may be shorter.
        causal: inside that reach, read what comes no later in row-major order; or for each axis
            whether keys after the query are left out.
        lookback: earlier blocks that are read too, an int or one for each axis.
        size: (length,), (height, width) or (frames, height, width); an int for a square image.
        shift: where the first border between blocks lies, an int or one for each axis; blocks
            at the ends are cut, not joined.

    Raises:
        ValueError: block_size is not positive, lookback is negative, shift is not below
            block_size, or axes differ in number.
    """

    block_size: int | tuple[int, ...]
    causal: bool | tuple[bool, ...] = False
    lookback: int | tuple[int, ...] = 0
    size: int | tuple[int, ...] | None = None
    shift: int | tuple[int, ...] = 0

    def __post_init__(self) -> None:
        if self.size is None:
            if isinstance(self.block_size, tuple | list):
                raise ValueError(
                    f"block_size on several axes needs their lengths as size, got block_size="
                    f"{self.block_size} and size=None."
                )
            self._check_ints(1, "block_size")
            self._check_ints(0, "lookback", "shift")
            self._check_bools("causal")
        else:
            object.__setattr__(self, "size", sides(self.size))
            count = len(self.sides)
            object.__setattr__(self, "block_size", each(self.block_size, "block_size", count))
            object.__setattr__(self, "causal", each_bool(self.causal, "causal", count))
            for name in ("lookback", "shift"):
                object.__setattr__(self, name, each(getattr(self, name), name, count, 0))
        for first, block in zip(self._of("shift"), self._of("block_size"), strict=True):
            if first >= block:
                raise ValueError(
                    f"shift must be less than block_size, got shift={self.shift} and "
                    f"block_size={self.block_size}."
                )

    @property
    def sides(self) -> tuple[int, ...]:
        return (MOST,) if self.size is None else self.size  # type: ignore[return-value]

    def _of(self, name: str) -> tuple[int, ...]:
        """A field as a number for each axis."""
        value = getattr(self, name)
        return value if isinstance(value, tuple) else (value,)

    def _uncut(self, at: Any, axis: int) -> Bounds:
        block, first = self._of("block_size")[axis], self._of("shift")[axis]
        start = (at - first) // block * block + first
        return start - self._of("lookback")[axis] * block, start + block

    def _ahead(self, axis: int) -> bool:
        return self._of("block_size")[axis] > 1

    def _back(self, axis: int) -> int:
        return (self._of("lookback")[axis] + 1) * self._of("block_size")[axis] - 1

    @property
    def grid(self) -> tuple[int, ...] | None:
        return None if self.size is None else self.sides

    @property
    def offset_reach(self) -> tuple[int, ...] | None:
        return None if self.size is None else self._back_reach()

    @property
    def period(self) -> int | None:
        return self.block_size if self.size is None else None  # type: ignore[return-value]

    @property
    def _tile(self) -> tuple[int, ...]:
        block = self._of("block_size")
        if len(block) == 1:
            return (min(MAX_TILE, block[0]),)
        return tile_shape(block, MAX_TILE if self.causal else WHOLE_BLOCK)

    def _breaks(self, axis: int) -> tuple[int, int]:
        return self._of("block_size")[axis], self._of("shift")[axis]

    def keeps(self, position: int) -> range | Tensor:
        if len(self.sides) > 1:
            return super().keeps(position)
        self._require_causal("keeps")
        return range(max(0, self._uncut(position + 1, 0)[0]), position + 1)

    def _pairs_along(self, axis: int, length: int) -> tuple[int, int, int]:
        # block by block, for a sequence may be long
        block, first = self._of("block_size")[axis], self._of("shift")[axis]
        begin = torch.arange(first - block if first else 0, length, block, device="cpu")
        start, end = begin.clamp(min=0), (begin + block).clamp(max=length)
        count = end - start
        earlier = start - (begin - self._of("lookback")[axis] * block).clamp(min=0)
        pairs = int((count * (count - 1) // 2).sum())
        return int((count * earlier).sum()) + pairs, length, 0 if self._cut(axis) else pairs
