"""Depthwise separable self-attention: within windows, then between them (SepViT).

Li et al., "SepViT: Separable Vision Transformer" (2022). Two layers: `DSSA` has the parameters
of vit-pytorch's layer, `SeparableAttention` those of the authors' code.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from foveal.common.arguments import checked
from foveal.common.by_example import dropout as drop
from foveal.common.checks import check_dense
from foveal.layers.checks import check_dropout, check_sizes
from foveal.layers.dropout import Dropout
from foveal.layers.linear import is_plain, linear
from foveal.layers.patch import ChanLayerNorm, PointwiseConv, as_map, over_channels, tokens
from foveal.layers.relative_position import Size
from foveal.layers.rows import HERE, Rows
from foveal.layers.windows import (
    fold,
    from_windows,
    known,
    real_pixels,
    to_windows,
    windows_alone,
)
from foveal.ops.fused import fused_attention
from foveal.patterns import Full, Halo, Pattern
from foveal.patterns.sizes import pair

_SMALL_WINDOW = 64  # tokens


class DSSA(nn.Module):
    """Attention within windows and one token each, then between windows; as in vit-pytorch.

    A learned token joins every window; what it gathers there decides how much the windows then
    read of each other. Maps that the window does not divide are padded, and the padding is read
    by nobody.

    Args:
        dim: features of the map.
        heads: number of heads.
        dim_head: features of a head.
        dropout: on both kinds of attention weights and on the result.
        window_size: (height, width) of a window, or an int.

    Raises:
        ValueError: sizes that are not positive, or dropout outside [0, 1).
    """

    rows: Rows = HERE

    @checked
    def __init__(
        self,
        dim: int,
        heads: int = 8,
        dim_head: int = 32,
        dropout: float = 0.0,
        window_size: Size = 7,
    ) -> None:
        super().__init__()
        check_sizes(dim=dim, heads=heads, dim_head=dim_head)
        check_dropout(dropout)
        self.dim, self.heads, self.dim_head, self.dropout = dim, heads, dim_head, dropout
        self.window_size = pair(window_size, "window_size")
        inner = heads * dim_head
        self.norm = ChanLayerNorm(dim)
        # convolutions of width 1 hold the weights under the names and shapes of vit-pytorch
        self.to_qkv = nn.Conv1d(dim, 3 * inner, 1, bias=False)
        self.window_tokens = nn.Parameter(torch.randn(dim))
        self.window_tokens_to_qk = nn.Sequential(
            nn.LayerNorm(dim_head),
            nn.GELU(),
            nn.Identity(),
            nn.Conv1d(inner, 2 * inner, 1),
        )
        self.to_out = nn.Sequential(PointwiseConv(inner, dim), Dropout(dropout))

    def extra_repr(self) -> str:
        return f"heads={self.heads}, dim_head={self.dim_head}, window_size={self.window_size}"

    @property
    def pattern(self) -> Halo:
        """Who reads whom within windows, in a map of three windows a side."""
        return windows_alone(self.window_size)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, dim, height, width) -> same."""
        _check_map(x, self.dim)
        x = over_channels(self.norm, tokens(x))
        size, window = (x.shape[1], x.shape[2]), self.window_size
        windows = to_windows(x, window)
        batch, *grid = windows.shape[:3]
        windows = fold(windows, 0, 2)
        token = self.window_tokens.to(x.dtype).expand(windows.shape[0], 1, -1)
        qkv = _pointwise(self.to_qkv, torch.cat((token, windows), 1))
        qkv = qkv.unflatten(-1, (3, self.heads, self.dim_head))
        dropout = self.dropout if self.training else 0.0
        real = real_pixels(x, window)
        out = window_attention(qkv, real, batch, dropout)  # (windows, heads, 1 + pixels, dim_head)

        token, pixels = out.unflatten(0, (batch, -1)).split((1, out.shape[2] - 1), 3)
        shares = self._shares(token[:, :, :, 0], dropout)
        every = self.rows.all(pixels.transpose(2, 3), 1)
        maps = mix_windows(shares, every, _every_real(real, x, window, self.rows))
        maps = from_windows(fold(maps, 3, 4).unflatten(1, grid), window, size)
        return as_map(over_channels(self.to_out, maps))

    def _shares(self, found: Tensor, dropout: float) -> Tensor:
        """How much windows read of each other: (batch, heads, windows, windows).

        found: (batch, windows, heads, dim_head), what the window tokens gathered.
        """
        norm, activation, _, project = self.window_tokens_to_qk
        qk = _pointwise(project, activation(norm(found)).flatten(2))
        qk = qk.unflatten(-1, (self.heads, 2, self.dim_head))
        return window_shares(qk.transpose(2, 3), dropout, self.rows)


def _pointwise(layer: nn.Module, x: Tensor) -> Tensor:
    """A convolution of width 1 over tokens (batch, tokens, dim_in) -> (..., dim_out)."""
    if is_plain(layer, nn.Conv1d):
        return linear(x, layer.weight.flatten(1), layer.bias)  # type: ignore
    return layer(x.mT).mT


class SeparableAttention(nn.Module):
    """Attention within windows and one token each, then between windows; as the authors wrote it.

    Differs from `DSSA` in: the norm covers the window tokens; both kinds of attention have a
    shortcut around them; every window has a token of its own; projections have biases. Windows
    of 14 beside windows of 7 are the "grouped" attention of the paper.

    Args:
        dim: features of the map.
        heads: number of heads; divides dim.
        window_size: (height, width) of a window, or an int.
        grid: windows along the height and the width at the resolution of training. Maps of other
            sizes get window tokens interpolated to their grid. With one window the layer is
            global attention without window tokens, at any size.
        window_tokens: "learned", or "zero" for none.
        dropout: on the attention weights.
        proj_dropout: on the result.
        qkv_bias: biases in the projections to queries, keys and values.
        eps: of the layer norms.

    Raises:
        ValueError: sizes that are not positive or do not divide, an unknown option.
    """

    win_tokens: nn.Parameter | None
    rows: Rows = HERE

    @checked
    def __init__(
        self,
        dim: int,
        heads: int,
        window_size: Size = 7,
        grid: Size = (8, 8),
        window_tokens: Literal["learned", "zero"] = "learned",
        dropout: float = 0.0,
        proj_dropout: float = 0.0,
        qkv_bias: bool = True,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        check_sizes(dim=dim, heads=heads)
        check_dropout(dropout)
        if dim % heads:
            raise ValueError(f"heads must divide dim, got {dim=} and {heads=}.")
        if window_tokens not in ("learned", "zero"):
            raise ValueError(f"window_tokens must be 'learned' or 'zero', got {window_tokens=}.")
        self.dim, self.heads, self.dropout = dim, heads, dropout
        self.window_size, self.grid = pair(window_size, "window_size"), pair(grid, "grid")
        self.is_global = self.grid == (1, 1)
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.win_tokens = None
        if not self.is_global:
            if window_tokens == "learned":
                self.win_tokens = nn.Parameter(torch.zeros(1, self.grid[0] * self.grid[1], 1, dim))
            self.win_norm = nn.LayerNorm(dim)
            self.win_qk = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.to_out = nn.Linear(dim, dim)
        self.drop = Dropout(proj_dropout)

    def extra_repr(self) -> str:
        return f"heads={self.heads}, window_size={self.window_size}, grid={self.grid}"

    @property
    def pattern(self) -> Pattern:
        """Who reads whom within windows, in a map of three windows a side; all where global."""
        return Full() if self.is_global else windows_alone(self.window_size)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, dim) -> same."""
        out = self._whole(x) if self.is_global else self._separable(x)
        return self.drop(self.to_out(out))

    def _whole(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self._within(fold(x, 1, 2), None, x.shape[0]).unflatten(1, x.shape[1:3]) + x

    def _separable(self, x: Tensor) -> Tensor:
        size, window = (x.shape[1], x.shape[2]), self.window_size
        windows = to_windows(x, window)
        batch, *grid = windows.shape[:3]
        windows = fold(windows, 1, 2)
        token = self._tokens(windows, grid)
        both = self.norm(torch.cat((token, windows), 2))
        real = real_pixels(x, window)
        within = self._within(fold(both, 0, 1), real, batch)
        both = both + within.unflatten(0, both.shape[:2])

        found, maps = both.split((1, both.shape[2] - 1), 2)
        maps = maps.unflatten(-1, (self.heads, -1))
        qk = self.win_qk(gelu(self.win_norm(found[:, :, 0]))).unflatten(-1, (2, self.heads, -1))
        shares = window_shares(qk, self.dropout if self.training else 0.0, self.rows)
        every = self.rows.all(maps, 1)
        maps = mix_windows(shares, every, _every_real(real, x, window, self.rows)) + maps
        return from_windows(fold(maps, 3, 4).unflatten(1, grid), window, size)

    def _within(self, x: Tensor, real: Tensor | None, batch: int) -> Tensor:
        """Attention inside windows: (windows, tokens, dim) -> same."""
        qkv = self.to_qkv(x).unflatten(-1, (3, self.heads, -1))
        dropout = self.dropout if self.training else 0.0
        kv = self.rows.all(qkv[:, :, 1:], 1) if self.is_global and not self.rows.here else None
        return fold(window_attention(qkv, real, batch, dropout, kv).transpose(1, 2), 2, 3)

    def _tokens(self, windows: Tensor, grid: list[int]) -> Tensor:
        """Window tokens of a map: (batch, windows, 1, dim)."""
        batch, count, _, dim = windows.shape
        if self.win_tokens is None:
            return windows.new_zeros(batch, count, 1, dim)
        own: Tensor = self.win_tokens
        whole = (self.rows.count(grid[0], "windows"), grid[1])
        if not known(*grid) or whole != self.grid:
            down, across = (_resize(n, old, own) for n, old in zip(whole, self.grid, strict=True))
            image = own.view(*self.grid, dim)
            image = torch.einsum("yi,ijd,xj->yxd", down, image, across)
            own = image.flatten(0, 1)[None, :, None]
        own = self.rows.own(own, 1, count)
        return own.to(windows.dtype).expand(batch, -1, -1, -1)


def _resize(new: int, old: int, like: Tensor) -> Tensor:
    """Weights (new, old) of linear interpolation along one axis, pixels as areas.

    Written in tensors, since `new` may be a symbol that cannot take part in float arithmetic.
    """
    index = torch.arange(new, device=like.device)
    place = (2 * index + 1) * old / (2 * (index[-1] + 1)) - 0.5
    place = place.clamp(0, old - 1)
    distance = (place[:, None] - torch.arange(old, device=like.device)).abs()
    return (1 - distance).clamp(min=0).to(like.dtype)


def _every_real(
    real: Tensor | None, x: Tensor, window: tuple[int, int], rows: Rows
) -> Tensor | None:
    """As `real`, which is of the windows that are here, of the windows of all rows."""
    if rows.here:
        return real
    return real_pixels(x.new_empty(1, rows.count(x.shape[1]), x.shape[2]), window)


def window_attention(
    qkv: Tensor, real: Tensor | None, batch: int, dropout: float, kv: Tensor | None = None
) -> Tensor:
    """Attention of the tokens of each window to each other.

    Args:
        qkv: (batch * windows, tokens, 3, heads, dim_head); the first token may be a window token.
        real: (windows, pixels) bool, which of the last tokens are pixels; None = all.
        batch: number of maps.
        dropout: on the attention weights.
        kv: (batch * windows, all tokens, 2, heads, dim_head), where keys are more than queries.

    Returns:
        (batch * windows, heads, tokens, dim_head).
    """
    mask = None
    if real is not None:
        real = nn.functional.pad(real, (qkv.shape[1] - real.shape[1], 0), value=True)
        mask = real.expand(batch, -1, -1).flatten(0, 1)[:, None, None, :]
    if kv is None and qkv.device.type == "cpu" and qkv.shape[1] <= _SMALL_WINDOW:
        return _small_attention(qkv, mask, dropout)
    q, k, v = qkv.transpose(1, 3).unbind(2)
    if kv is not None:
        k, v = kv.transpose(1, 3).unbind(2)
    return fused_attention(q, k, v, attn_mask=mask, dropout_p=dropout)


def _small_attention(qkv: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """The same in plain products, whose backward pass is faster on CPU at this size."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4).contiguous().unbind(0)
    logits = q * q.shape[-1] ** -0.5 @ k.mT
    if mask is not None:  # a window token, or the window's first pixel, is always there
        logits = logits.masked_fill(~mask, -torch.inf)
    weights = logits.softmax(-1)
    return (drop(weights, dropout) if dropout else weights) @ v


def window_shares(qk: Tensor, dropout: float, rows: Rows = HERE) -> Tensor:
    """Attention weights between windows.

    qk (batch, windows, 2, heads, dim_head) -> (batch, heads, windows, windows of all rows).
    """
    q, k = qk.transpose(1, 3).unbind(2)
    k = rows.all(k, 2)
    weights = (q * q.shape[-1] ** -0.5 @ k.mT).softmax(-1)
    return drop(weights, dropout) if dropout else weights


def mix_windows(shares: Tensor, maps: Tensor, real: Tensor | None) -> Tensor:
    """Every window as the weighted mean of all windows, pixel by pixel.

    Where a window has no pixel, because it leaves the map, the others share its weight.

    Args:
        shares: (batch, heads, windows, all windows).
        maps: (batch, all windows, pixels, heads, dim_head).
        real: (all windows, pixels) bool; None = all pixels are.

    Returns:
        (batch, windows, pixels, heads, dim_head).
    """
    if real is not None:
        maps = maps * real[:, :, None, None]
    flat = maps.permute(0, 3, 1, 2, 4)
    mixed = (shares.to(maps.dtype) @ fold(flat, 3, 4)).unflatten(3, flat.shape[3:])
    if real is not None:
        weight = shares @ real.to(shares.dtype)
        # a pixel that no window has is padding, and will be cut off
        weight = torch.where(weight > 0, weight, 1.0)
        mixed = mixed / weight[..., None].to(mixed.dtype)
    return mixed.permute(0, 2, 3, 1, 4)


def _check_map(x: Tensor, dim: int) -> None:
    check_dense("x", x)
    if x.ndim != 4 or x.shape[1] != dim:
        raise ValueError(f"x must be (batch, {dim}, height, width), got {tuple(x.shape)}.")
