"""Reading and writing tokens of a tensor through the grids of a tile plan.

Tensors are (*lead, tokens, dim), where the leading dimensions are the batch and the heads.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from foveal.patterns.tiling import Grid, Lookup, Places, Runs, Scattered, TileGroup


def narrow_places(places: Places, first: int, count: int) -> Places:
    """Tiles [first, first + count) along the first tile dimension."""
    if isinstance(places, Lookup):
        return Lookup(places.positions[first : first + count])
    if isinstance(places, Runs):
        return Runs(places.units[first : first + count], places.size)
    if isinstance(places, Scattered):
        return Scattered(places.starts[first : first + count], places.items)
    (_, step), *rest = places.tiles
    return replace(places, start=places.start + first * step, tiles=((count, step), *rest))


def outer_count(group: TileGroup) -> int:
    """Length of the tile dimension along which a group is cut into chunks."""
    grids = (group.queries, *group.keys)
    counts = {g.tiles[0][0] if isinstance(g, Grid) else g.num_tiles for g in grids}
    return counts.pop() if len(counts) == 1 else 1


def view(x: Tensor, grid: Grid) -> Tensor:
    """(*lead, tokens, dim) -> view (*lead, *tiles, *items, dim) without a copy."""
    *lead, token, inner = x.stride()
    dims = (*grid.tiles, *grid.items)
    return x.as_strided(
        (*x.shape[:-2], *(count for count, _ in dims), x.shape[-1]),
        (*lead, *(stride * token for _, stride in dims), inner),
        x.storage_offset() + grid.start * token,
    )


def matrices(x: Tensor, grid: Places) -> Tensor | None:
    """(*lead, tokens, dim) -> view (*lead, tiles, items, dim), or None if no such view exists."""
    if not isinstance(grid, Grid):
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
    """Copy tokens: x (*lead, tokens, dim) -> out (*lead, tiles, items, dim)."""
    if isinstance(places, Lookup):
        out.copy_(x.index_select(-2, places.flat(x.device)).view(out.shape))
    elif isinstance(places, Runs):
        runs = x.unflatten(-2, (-1, places.size))
        out.copy_(runs.index_select(-3, places.flat(x.device)).view(out.shape))
    elif isinstance(places, Scattered):
        for own, part in _one_by_one(x, places, out):
            part.copy_(own)
    else:
        split_view(out, places).copy_(view(x, places))


def split_view(x: Tensor, grid: Grid) -> Tensor:
    """(*lead, tiles, items, dim) -> view (*lead, *tiles, *items, dim)."""
    *lead, tile, item, inner = x.stride()
    strides: list[int] = []
    for dims, unit in ((grid.tiles, tile), (grid.items, item)):
        steps = [unit]
        for count, _ in reversed(dims[1:]):
            steps.insert(0, steps[0] * count)
        strides += steps
    shape = [count for count, _ in (*grid.tiles, *grid.items)]
    return x.as_strided(
        (*x.shape[:-3], *shape, x.shape[-1]), (*lead, *strides, inner), x.storage_offset()
    )


def _one_by_one(x: Tensor, places: Scattered, values: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Each tile in x (*lead, tokens, dim) and in values (*lead, tiles, items, dim), as views.

    Of whole tiles a loop is faster than an index of tokens.
    """
    for tile, grid in enumerate(places.grids()):
        yield view(x, grid), split_view(values[..., tile : tile + 1, :, :], grid)


def scatter(x: Tensor, places: Places, values: Tensor) -> None:
    """Write tokens that no two tiles share: values (*lead, tiles, items, dim) -> x."""
    if isinstance(places, Lookup):
        index = places.flat(x.device)
        x.index_copy_(x.ndim - 2, index, values.flatten(-3, -2).to(x.dtype))
    elif isinstance(places, Runs):
        scatter(x, Lookup(places.index()), values)
    elif isinstance(places, Scattered):
        for own, part in _one_by_one(x, places, values):
            own.copy_(part)
    else:
        view(x, places).copy_(split_view(values, places))


def accumulate(x: Tensor, places: Places, values: Tensor) -> None:
    """Add values (*lead, tiles, items, dim) into x (*lead, tokens, dim), where tiles may overlap.

    Overlapping tiles are added in classes of tiles that do not overlap, in a fixed order.
    """
    if isinstance(places, Lookup):
        x.index_add_(x.ndim - 2, places.flat(x.device), values.flatten(-3, -2).to(x.dtype))
        return
    if isinstance(places, Runs):
        runs = x.unflatten(-2, (-1, places.size))
        parts = values.to(x.dtype).flatten(-3, -2).unflatten(-2, (-1, places.size))
        runs.index_add_(x.ndim - 2, places.flat(x.device), parts)
        return
    if isinstance(places, Scattered):
        for own, part in _one_by_one(x, places, values):
            own.add_(part)
        return
    lead = x.ndim - 2
    grid, parts = _sum_shared(places, split_view(values, places), lead)
    target = view(x, grid)
    classes = [
        -(-((count - 1) * step + 1) // pace) if tiles > 1 else 1
        for (tiles, pace), (count, step) in zip(grid.tiles, grid.items, strict=True)
    ]
    whole = (slice(None),) * lead
    for starts in itertools.product(*(range(n) for n in classes)):
        cut = whole + tuple(slice(s, None, n) for s, n in zip(starts, classes, strict=True))
        target[cut].add_(parts[cut])


def _sum_shared(grid: Grid, values: Tensor, lead: int) -> tuple[Grid, Tensor]:
    """Add up tile dimensions of stride 0, whose tiles are the same tokens."""
    tiles = list(grid.tiles)
    for axis, (count, step) in enumerate(tiles):
        if step == 0 and count > 1:
            values = values.sum(lead + axis, keepdim=True)
            tiles[axis] = (1, 0)
    return replace(grid, tiles=tuple(tiles)), values


def tile_values(x: Tensor, parts: tuple[Places, ...]) -> Tensor:
    """One number per token: x (*lead, tokens) -> (*lead, tiles, tile_k)."""
    sizes = [part.num_items for part in parts]
    out = x.new_empty(*x.shape[:-1], parts[0].num_tiles, sum(sizes), 1)
    take_keys(x[..., None], parts, out)
    return out[..., 0]


def take_keys(x: Tensor, parts: tuple[Places, ...], out: Tensor) -> None:
    """Gather several places side by side: out (*lead, tiles, tile_k, dim)."""
    first = 0
    for part in parts:
        gather(x, part, out[..., first : first + part.num_items, :])
        first += part.num_items


def add_keys(x: Tensor, parts: tuple[Places, ...], values: Tensor) -> None:
    """Reverse of `take_keys`: add values (*lead, tiles, tile_k, dim) into x."""
    first = 0
    for part in parts:
        accumulate(x, part, values[..., first : first + part.num_items, :])
        first += part.num_items


def batched_matmul(a: Tensor, b: Tensor, out: Tensor) -> None:
    """out = a @ b over (b, g, t) matrices, without a copy of overlapping ones."""
    if _one_batch(a) and _one_batch(b):
        torch.bmm(a.flatten(0, 2), b.flatten(0, 2), out=out.flatten(0, 2))
        return
    for at in itertools.product(*(range(n) for n in out.shape[:2])):
        torch.bmm(a[at], b[at], out=out[at])


def _one_batch(x: Tensor) -> bool:
    """Whether the three batch dimensions can be viewed as one."""
    (b, g, t), (batch, head, tile) = x.shape[:3], x.stride()[:3]
    return (g == 1 or t == 1 or head == t * tile) and (
        b == 1 or g * t == 1 or batch == (g * head if g > 1 else t * tile)
    )


def row_products(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Sums over the last dimension of a * b, both (B, G, ...), head by head to stay in cache."""
    sums = torch.empty(a.shape[:-1], dtype=dtype, device=a.device)
    for at in itertools.product(*(range(n) for n in a.shape[:2])):
        torch.sum(a[at].to(dtype) * b[at], -1, out=sums[at])
    return sums


class Scratch:
    """Named buffers that chunks reuse: on CPU a fresh page costs more than its arithmetic."""

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
