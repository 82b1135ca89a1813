"""Where chosen pixels of a picture look: attention weights laid over it, by layer and head.

The layers compute no weights that could be kept. While `record_attention` is open, hooks work
them out a second time from the queries and keys of each layer; closed, nothing is left of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate

from foveal.draw.style import INK, QUERY, Picture, as_png, save_figure
from foveal.layers.halo import HaloAttention
from foveal.layers.separable import SeparableAttention, window_shares
from foveal.layers.windows import from_windows, real_pixels, to_windows

_MAX_HEADS = 8


@dataclass(frozen=True)
class LayerAttention:
    """Attention of one layer for the chosen pixels of one picture.

    Attributes:
        name: of the layer in the model.
        maps: (chosen pixels, heads, height, width), weights that sum to 1 over the map, except
            for what a SepViT window gives to its window token.
        at: the (row, column) of each chosen pixel among the layer's queries' keys.
    """

    name: str
    maps: Tensor
    at: list[tuple[int, int]]


@torch.no_grad()
def record_attention(
    model: nn.Module, image: Tensor, at: Sequence[tuple[int, int]]
) -> list[LayerAttention]:
    """Run a model on one image and work out the attention of chosen pixels in every layer.

    Args:
        model: with HaloAttention or SeparableAttention layers.
        image: (1, channels, height, width), as the model wants it.
        at: (row, column) of pixels of the image.

    Raises:
        ValueError: a pixel outside the image, or a model without such layers.
    """
    height, width = image.shape[2:]
    for row, column in at:
        if not (0 <= row < height and 0 <= column < width):
            raise ValueError(
                f"--at must be a pixel of the picture, rows 0 to {height - 1} and columns 0 to "
                f"{width - 1}, got {row},{column}."
            )
    found: list[LayerAttention] = []
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, (HaloAttention, SeparableAttention)):
            hook = _Hook(name, found, [(y / height, x / width) for y, x in at])
            handles.append(module.register_forward_pre_hook(hook))
    if not handles:
        raise ValueError(
            "the model has no HaloAttention or SeparableAttention layers, whose attention could "
            "be drawn."
        )
    try:
        model(image)
    finally:
        for handle in handles:
            handle.remove()
    return found


class _Hook:
    """Works out the weights of a layer when it is about to run.

    Args:
        name: of the layer.
        found: where the result goes.
        places: (row, column) of the pixels as shares of the image.
    """

    def __init__(
        self, name: str, found: list[LayerAttention], places: Sequence[tuple[float, float]]
    ) -> None:
        self.name, self.found, self.places = name, found, places

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach()
        if isinstance(layer, HaloAttention):
            at = self._pixels(x.shape[2], x.shape[3])
            maps = halo_weights(layer, x, at)
        else:
            assert isinstance(layer, SeparableAttention)
            at = self._pixels(x.shape[1], x.shape[2])
            maps = separable_weights(layer, x, at)
        self.found.append(LayerAttention(self.name, maps.float().cpu(), at))

    def _pixels(self, height: int, width: int) -> list[tuple[int, int]]:
        return [(int(y * height), int(x * width)) for y, x in self.places]


def halo_weights(layer: HaloAttention, x: Tensor, at: Sequence[tuple[int, int]]) -> Tensor:
    """Attention of pixels in a HaloAttention layer: (pixels, heads, height, width).

    With a stride, the query nearest above and left of the pixel stands for it.

    Args:
        x: what the layer is given, (1, dim, height, width).
        at: (row, column) of pixels of that map.
    """
    q, k, _ = layer._project(x)
    height, width = k.shape[1:3]
    pattern = layer.pattern_of(height, width)
    columns = q.shape[2]
    query = torch.tensor(
        [(y // layer.stride) * columns + xx // layer.stride for y, xx in at], device=x.device
    )
    keys = torch.arange(height * width, device=x.device)
    allowed = pattern.allows(query[:, None], keys[None])
    logits = torch.einsum(
        "qhd,khd->hqk", q.flatten(1, 2)[0, query] * layer.scale, k.flatten(1, 2)[0]
    )
    bias = layer._bias(q)
    if bias is not None:
        logits = logits + _window_bias(layer, bias, at, height, width, query)
    logits = logits.masked_fill(~allowed, -torch.inf)
    return logits.softmax(-1).transpose(0, 1).unflatten(2, (height, width))


def _window_bias(
    layer: HaloAttention,
    bias: Any,
    at: Sequence[tuple[int, int]],
    height: int,
    width: int,
    query: Tensor,
) -> Tensor:
    """Position logits (heads, queries, keys) of whole rows; zero outside the windows."""
    parts = []
    for axis, length in ((0, height), (1, width)):
        block, halo = layer.block_size[axis], layer.halo_size[axis]
        start = torch.tensor([p[axis] // block * block - halo for p in at], device=query.device)
        place = torch.arange(length, device=query.device) - start[:, None]
        table = bias[axis][0][:, query]  # (heads, queries, window)
        inside = place.clamp(0, table.shape[-1] - 1).expand(table.shape[0], -1, -1)
        parts.append(table.gather(-1, inside))
    return (parts[0][..., :, None] + parts[1][..., None, :]).flatten(2)


def separable_weights(
    layer: SeparableAttention, x: Tensor, at: Sequence[tuple[int, int]]
) -> Tensor:
    """How much pixels take from each pixel in a SeparableAttention layer, by head.

    Between windows a pixel reads the pixel at its own place in every window, which has read its
    own window: the weights are the products of the two steps.

    Args:
        x: what the layer is given, (1, height, width, dim).
        at: (row, column) of pixels of that map.

    Returns:
        (pixels, heads, height, width); what goes to window tokens is left out.
    """
    size, window, heads = (x.shape[1], x.shape[2]), layer.window_size, layer.heads
    if layer.is_global:
        tokens = layer.norm(x).flatten(1, 2)
        weights = _within(layer, tokens, None)[0]  # (heads, pixels, pixels)
        index = [y * size[1] + xx for y, xx in at]
        return weights[:, index].transpose(0, 1).unflatten(2, size)
    windows = to_windows(x, window)
    grid = list(windows.shape[1:3])
    windows = windows.flatten(1, 2)
    both = layer.norm(torch.cat((layer._tokens(windows, grid), windows), 2)).flatten(0, 1)
    real = real_pixels(x, window)
    within = _within(layer, both, real)  # (windows, heads, 1 + pixels, 1 + pixels)
    found = (both + layer._within(both, real, 1))[None, :, 0]
    qk = layer.win_qk(gelu(layer.win_norm(found))).unflatten(-1, (2, heads, -1))
    shares = window_shares(qk, 0.0)[0]  # (heads, windows, windows)
    if real is not None:
        shares = _renormed(shares, real)
    maps = []
    for y, xx in at:
        mine = y // window[0] * grid[1] + xx // window[1]
        pixel = y % window[0] * window[1] + xx % window[1]
        share = shares[:, mine] if real is None else shares[:, mine, :, pixel]
        joint = within[:, :, 1 + pixel, 1:] * share.t()[:, :, None]  # (windows, heads, pixels)
        joint = joint.transpose(1, 2).unflatten(0, grid)[None]
        maps.append(from_windows(joint, window, size)[0].permute(2, 0, 1))
    return torch.stack(maps)


def _renormed(shares: Tensor, real: Tensor) -> Tensor:
    """Shares for each pixel over the windows that have it: (heads, windows, windows, pixels)."""
    each = shares[..., None] * real.to(shares.dtype)[None, None]
    total = each.sum(2, keepdim=True)
    return each / torch.where(total > 0, total, 1.0)


def _within(layer: SeparableAttention, x: Tensor, real: Tensor | None) -> Tensor:
    """Weights inside windows (windows, heads, tokens, tokens); x (windows, tokens, dim)."""
    qkv = layer.to_qkv(x).unflatten(-1, (3, layer.heads, -1))
    q, k, _ = qkv.transpose(1, 3).unbind(2)
    logits = q * q.shape[-1] ** -0.5 @ k.mT
    if real is not None:
        seen = nn.functional.pad(real, (x.shape[1] - real.shape[1], 0), value=True)
        logits = logits.masked_fill(~seen[:, None, None, :], -torch.inf)
    return logits.softmax(-1)


# -- the picture ----------------------------------------------------------------------------------


@overload
def draw_attention(
    picture: Any,
    layers: Sequence[LayerAttention],
    number: int,
    at: tuple[int, int],
    path: None = None,
) -> Picture: ...
@overload
def draw_attention(
    picture: Any, layers: Sequence[LayerAttention], number: int, at: tuple[int, int], path: Path
) -> Path: ...
def draw_attention(
    picture: Any,
    layers: Sequence[LayerAttention],
    number: int,
    at: tuple[int, int],
    path: Path | None = None,
) -> Picture | Path:
    """Lay the attention of one pixel over the picture: a row a layer, a column a head.

    Args:
        picture: uint8 (size, size, 3).
        layers: from `record_attention`.
        number: which of the recorded pixels.
        at: its (row, column) in the picture.
        path: of the PNG; None returns its bytes.
    """
    from matplotlib.figure import Figure

    columns = min(_MAX_HEADS, max(layer.maps.shape[1] for layer in layers)) + 1
    size = (1.35 * columns + 1.0, 1.55 * len(layers) + 0.5)
    figure = Figure(figsize=size, dpi=150, layout="constrained", facecolor="white")
    rows = figure.subplots(len(layers), columns, squeeze=False)
    for axes_row, layer in zip(rows, layers, strict=True):
        maps = layer.maps[number]
        shown = [("mean", maps.mean(0))] + [
            (f"head {head}", one) for head, one in enumerate(maps[: columns - 1])
        ]
        for axes in axes_row:
            axes.set_axis_off()
        for axes, (title, weights) in zip(axes_row, shown, strict=False):
            _overlay(axes, picture, weights, at)
            axes.set_title(title, fontsize=7, color=INK, pad=2)
        height, width = maps.shape[1:]
        label = f"{layer.name}\n{height} x {width}"
        axes_row[0].text(
            -0.06, 0.5, label, transform=axes_row[0].transAxes, fontsize=6.5, color=INK,
            rotation=90, ha="right", va="center",
        )  # fmt: skip
    figure.suptitle(f"what pixel ({at[0]}, {at[1]}) reads", fontsize=10, color=INK)
    return as_png(figure, None) if path is None else save_figure(figure, path)


def _overlay(axes: Any, picture: Any, weights: Tensor, at: tuple[int, int]) -> None:
    """The picture in grey, the weights in colour on it, and a ring round the pixel."""
    high, wide = picture.shape[:2]
    # a faint grey picture leaves the colours to the weights
    grey = 0.45 + 0.55 * picture.mean(2) / 255
    axes.imshow(grey, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    grown = interpolate(weights[None, None], (high, wide), mode="nearest")[0, 0]
    strength = grown / grown.max().clamp(min=1e-12)
    axes.imshow(
        strength.tolist(),
        cmap="Blues",
        alpha=(0.85 * strength.sqrt()).numpy(),
        vmin=0,
        vmax=1,
        interpolation="nearest",
    )
    axes.plot(at[1], at[0], "s", ms=5, mfc="none", mec=QUERY, mew=1.2)
