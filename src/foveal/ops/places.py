"""Reading and writing tokens of a tensor through the grids of a tile plan."""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch
from torch import Tensor

from foveal.patterns.tiling import Grid, Lookup, Places, TileGroup


def narrow_places(places: Places, first: int, count: int) -> Places:
    """Tiles [first, first + count) along the first tile dimension."""
    if isinstance(places, Lookup):
        return Lookup(places.positions[first : first + count])
    (_, step), *rest = places.tiles
    return replace(places, start=places.start + first * step, tiles=((count, step), *rest))


def outer_count(group: TileGroup) -> int:
    """Length of the tile dimension along which a group is cut into chunks."""
    grids = (group.queries, *group.keys)
    counts = {g.tiles[0][0] if isinstance(g, Grid) else g.num_tiles for g in grids}
    return counts.pop() if len(counts) == 1 else 1


def view(x: Tensor, grid: Grid) -> Tensor:
    """(heads, tokens, dim) -> view (heads, *tiles, *items, dim) without a copy."""
    heads, _, dim = x.shape
    across, token, inner = x.stride()
    dims = (*grid.tiles, *grid.items)
    return x.as_strided(
        (heads, *(count for count, _ in dims), dim),
        (across, *(stride * token for _, stride in dims), inner),
        x.storage_offset() + grid.start * token,
    )


def matrices(x: Tensor, grid: Places) -> Tensor | None:
    """(heads, tokens, dim) -> view (heads, tiles, items, dim), or None if no such view exists."""
    if isinstance(grid, Lookup):
        return None
    tiles, items = _collapse(grid.tiles), _collapse(grid.items)
    if tiles is None or items is None:
        return None
    return view(x, replace(grid, tiles=(tiles,), items=(items,)))


def _collapse(dims: tuple[tuple[int, int], ...]) -> tuple[int, int] | None:
    """Nested dimensions as one, if they are evenly spaced."""
    count, stride = 1, 0
    for inner, step in reversed(dims):
        if inner == 1:
            continue
        if count > 1 and step != stride * count:
            return None
        count, stride = count * inner, stride if count > 1 else step
    return count, stride


def gather(x: Tensor, places: Places, out: Tensor) -> None:
    """Copy tokens: x (heads, tokens, dim) -> out (heads, tiles, items, dim)."""
    if isinstance(places, Lookup):
        index = places.positions.to(x.device).reshape(-1)
        out.copy_(x.index_select(1, index).view(out.shape))
        return
    source = view(x, places)
    split_view(out, places).copy_(source)


def split_view(x: Tensor, grid: Grid) -> Tensor:
    """(heads, tiles, items, dim) -> view (heads, *tiles, *items, dim)."""
    shape = [count for count, _ in (*grid.tiles, *grid.items)]
    across, tile, item, inner = x.stride()
    strides = []
    for dims, unit in ((grid.tiles, tile), (grid.items, item)):
        steps = [unit]
        for count, _ in reversed(dims[1:]):
            steps.insert(0, steps[0] * count)
        strides += steps
    return x.as_strided(
        (x.shape[0], *shape, x.shape[3]), (across, *strides, inner), x.storage_offset()
    )


def scatter(x: Tensor, places: Places, values: Tensor) -> None:
    """Write tokens that no two tiles share: values (heads, tiles, items, dim) -> x."""
    if isinstance(places, Lookup):
        index = places.positions.to(x.device).reshape(-1)
        x.index_copy_(1, index, values.reshape(x.shape[0], -1, x.shape[2]).to(x.dtype))
        return
    view(x, places).copy_(split_view(values, places))


def accumulate(x: Tensor, places: Places, values: Tensor) -> None:
    """Add values (heads, tiles, items, dim) into x (heads, tokens, dim), where tiles may overlap.

    Overlapping tiles are added in classes of tiles that do not overlap, in a fixed order.
    """
    if isinstance(places, Lookup):
        index = places.positions.to(x.device).reshape(-1)
        x.index_add_(1, index, values.reshape(x.shape[0], -1, x.shape[2]))
        return
    grid, parts = _sum_shared(places, split_view(values, places))
    target = view(x, grid)
    classes = [
        -(-((count - 1) * step + 1) // pace) if tiles > 1 else 1
        for (tiles, pace), (count, step) in zip(grid.tiles, _padded_items(grid), strict=True)
    ]
    for starts in itertools.product(*(range(n) for n in classes)):
        cut = (slice(None), *(slice(s, None, n) for s, n in zip(starts, classes, strict=True)))
        target[cut].add_(parts[cut])


def _sum_shared(grid: Grid, values: Tensor) -> tuple[Grid, Tensor]:
    """Add up tile dimensions of stride 0, whose tiles are the same tokens."""
    tiles = list(grid.tiles)
    for axis, (count, step) in enumerate(tiles):
        if step == 0 and count > 1:
            values = values.sum(1 + axis, keepdim=True)
            tiles[axis] = (1, 0)
    return replace(grid, tiles=tuple(tiles)), values


def _padded_items(grid: Grid) -> list[tuple[int, int]]:
    """Item dimensions paired with the tile dimensions they run along."""
    if len(grid.items) == len(grid.tiles):
        return list(grid.items)
    return [grid.items[0]] * len(grid.tiles)


def tile_values(x: Tensor, places: Places) -> Tensor:
    """One number per token: x (tokens,) -> (tiles, items)."""
    out = x.new_empty(1, places.num_tiles, places.num_items, 1)
    gather(x[None, :, None], places, out)
    return out[0, :, :, 0]


def take_keys(x: Tensor, parts: tuple[Places, ...], out: Tensor) -> None:
    """Gather several places side by side: out (heads, tiles, tile_k, dim)."""
    first = 0
    for part in parts:
        gather(x, part, out[:, :, first : first + part.num_items])
        first += part.num_items


def add_keys(x: Tensor, parts: tuple[Places, ...], values: Tensor) -> None:
    """Reverse of `take_keys`: add values (heads, tiles, tile_k, dim) into x."""
    first = 0
    for part in parts:
        accumulate(x, part, values[:, :, first : first + part.num_items])
        first += part.num_items


class Scratch:
    """Named buffers that chunks reuse: on CPU a fresh page costs more than the arithmetic on it."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype, self._device = dtype, device
        self._buffers: dict[str, Tensor] = {}

    def get(self, name: str, *shape: int) -> Tensor:
        """A contiguous tensor of this shape with arbitrary contents."""
        size = 1
        for length in shape:
            size *= length
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size:
            buffer = torch.empty(size, dtype=self._dtype, device=self._device)
            self._buffers[name] = buffer
        return buffer[:size].view(shape)
