"""Pieces of convolutional transformers: patches that overlap, positions from a convolution.

All take and return maps (batch, dim, height, width). They are fastest, and copy least, when the
channels are last in memory, which is also how they return them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from foveal.common.arguments import checked
from foveal.common.by_example import dropout, is_active
from foveal.layers.checks import check_dropout, check_sizes
from foveal.layers.linear import is_plain, linear


def tokens(x: Tensor) -> Tensor:
    """(batch, dim, height, width) -> (batch, height, width, dim), without a copy."""
    return x.permute(0, 2, 3, 1)


def as_map(x: Tensor) -> Tensor:
    """(batch, height, width, dim) -> (batch, dim, height, width), without a copy."""
    return x.permute(0, 3, 1, 2)


class ChanLayerNorm(nn.Module):
    """Layer norm over the channels of a map, computed in float32 whatever its dtype.

    Args:
        dim: channels.
        eps: added to the variance.
    """

    @checked
    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        check_sizes(dim=dim)
        self.dim, self.eps = dim, eps
        self.g = nn.Parameter(torch.ones(1, dim, 1, 1))
        self.b = nn.Parameter(torch.zeros(1, dim, 1, 1))

    def extra_repr(self) -> str:
        return f"dim={self.dim}, eps={self.eps}"

    def forward(self, x: Tensor) -> Tensor:
        """(batch, dim, height, width) -> same."""
        return as_map(self.of_tokens(tokens(x)))

    def of_tokens(self, x: Tensor) -> Tensor:
        """The same with the channels last: (..., dim) -> same."""
        if x.dtype == torch.float64:
            return layer_norm(x, (self.dim,), self.g.flatten(), self.b.flatten(), self.eps)
        g, b = self.g.flatten().float(), self.b.flatten().float()
        return layer_norm(x.float(), (self.dim,), g, b, self.eps).to(x.dtype)


def over_channels(layer: nn.Module, x: Tensor) -> Tensor:
    """A layer of maps that works pixel by pixel, on (..., height, width, dim) -> same.

    A norm or a 1 x 1 convolution needs no map for it; what is wrapped or hooked is called on one.
    """
    if is_plain(layer, PointwiseConv, ChanLayerNorm):
        return layer.of_tokens(x)  # type: ignore[operator]
    if is_plain(layer, nn.Sequential):
        for part in layer.children():
            x = over_channels(part, x)
        return x
    if isinstance(layer, nn.GELU | nn.Dropout | nn.Identity):
        return layer(x)
    return tokens(layer(as_map(x)))


class PointwiseConv(nn.Conv2d):
    """A 1 x 1 convolution, computed as one matrix product over the pixels.

    Args:
        dim_in, dim_out: channels.
        bias: add a bias.
        stride: pixels from one that is kept to the next.
    """

    @checked
    def __init__(self, dim_in: int, dim_out: int, bias: bool = True, stride: int = 1) -> None:
        super().__init__(dim_in, dim_out, 1, stride, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, dim_in, height, width) -> (batch, dim_out, height / stride, width / stride)."""
        # not conv2d: with a stride and channels last its backward pass corrupts memory on CPU
        # where the channels are not a multiple of 8 (torch 2.13)
        x, (down, across) = tokens(x), self.stride
        return as_map(self.of_tokens(x[:, ::down, ::across] if max(self.stride) > 1 else x))

    def of_tokens(self, x: Tensor) -> Tensor:
        """The same with the channels last: (..., dim_in) -> (..., dim_out)."""
        return linear(x, self.weight.flatten(1), self.bias)


class OverlappingPatchEmbed(nn.Module):
    """A strided convolution whose patches overlap: the kernel is 2 * stride - 1 pixels wide.

    Args:
        dim_in, dim_out: channels.
        stride: pixels from one patch to the next.
        kernel_size: width of a patch; odd.
    """

    @checked
    def __init__(
        self, dim_in: int, dim_out: int, stride: int = 2, kernel_size: int | None = None
    ) -> None:
        super().__init__()
        check_sizes(dim_in=dim_in, dim_out=dim_out, stride=stride)
        kernel = 2 * stride - 1 if kernel_size is None else kernel_size
        if kernel % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size=}.")
        self.conv = nn.Conv2d(dim_in, dim_out, kernel, stride=stride, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, dim_in, height, width) -> (batch, dim_out, height / stride, width / stride)."""
        return self.conv(x)


class PEG(nn.Module):
    """Positional encoding generator: a depthwise convolution added to its input.

    Chu et al., "Conditional Positional Encodings for Vision Transformers" (2021).

    Args:
        dim: channels.
        kernel_size: odd.
    """

    @checked
    def __init__(self, dim: int, kernel_size: int = 3) -> None:
        super().__init__()
        check_sizes(dim=dim, kernel_size=kernel_size)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size=}.")
        self.proj = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, dim, height, width) -> same."""
        return self.proj(x) + x


class DropPath(nn.Module):
    """Stochastic depth: drops a residual branch for whole samples and scales up the others.

    Huang et al., "Deep Networks with Stochastic Depth" (2016).

    Args:
        rate: probability of dropping.
    """

    @checked
    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        check_dropout(rate)
        self.rate = rate

    def extra_repr(self) -> str:
        return f"rate={self.rate}"

    def forward(self, x: Tensor) -> Tensor:
        """(batch, ...) -> same."""
        if not self.rate or not self.training:
            return x
        shape = (x.shape[0], *[1] * (x.ndim - 1))
        if is_active():
            return x * dropout(x.new_ones(shape), self.rate)
        keep = x.new_empty(shape).bernoulli_(1 - self.rate)
        return x * keep.div_(1 - self.rate)


def drop_path_rates(rate: float, depths: tuple[int, ...]) -> list[list[float]]:
    """Rates that rise evenly from 0 to `rate` over all blocks, as a list for each stage."""
    total = sum(depths)
    rates = iter(rate * i / max(1, total - 1) for i in range(total))
    return [[next(rates) for _ in range(depth)] for depth in depths]
