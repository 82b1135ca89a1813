"""Normalisation over a batch of maps whose rows lie on many ranks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from foveal.parallel.moving import gather
from foveal.parallel.ranks import Ranks
from foveal.parallel.whole import Image, wider


def batch_norm(layer: _BatchNorm, image: Image, x: Tensor) -> Tensor:
    """What a batch norm makes of the whole maps while it trains, for the own rows.

    One exchange a direction: mean and squared deviations of each rank, which are then merged
    (Chan et al. 1979), so that no large sum of squares loses digits.

    x: (batch, dim, own rows, width) -> same.
    """
    if not layer.training and layer.running_mean is not None:
        return type(layer).forward(layer, x)
    mean, variance, count = moments(wider(x), image.ranks)
    if layer.training and layer.running_mean is not None:
        _remember(layer, mean.detach(), variance.detach() * (count / (count - 1)))
    scale = (variance + layer.eps).rsqrt()
    if layer.weight is not None:
        scale = scale * layer.weight.to(scale.dtype)
    y = (wider(x) - mean[:, None, None]) * scale[:, None, None]
    if layer.bias is not None:
        y = y + layer.bias.to(y.dtype)[:, None, None]
    return y.to(x.dtype)


def moments(x: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance (dim,) of each channel over the pixels of all ranks, and their number.

    x: (batch, dim, own rows, width).
    """
    dim, own = x.shape[1], x.numel() // x.shape[1]
    mean = x.sum((0, 2, 3)) / max(own, 1)
    spread = (x - mean[:, None, None]).square().sum((0, 2, 3))
    one = torch.cat([mean, spread, x.new_full((1,), own)])
    means, spreads, counts = gather(one[None], ranks, [1] * ranks.size).split([dim, dim, 1], 1)
    count = counts.sum()
    whole = (counts * means).sum(0) / count
    spread = spreads.sum(0) + (counts * (means - whole).square()).sum(0)
    return whole, spread / count, count


@torch.no_grad()
def _remember(layer: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """The running statistics, as torch keeps them."""
    factor = layer.momentum
    if layer.num_batches_tracked is not None:
        layer.num_batches_tracked.add_(1)
        if factor is None:
            factor = 1.0 / float(layer.num_batches_tracked)
    for kept, new in ((layer.running_mean, mean), (layer.running_var, variance)):
        if kept is not None:
            kept.lerp_(new.to(kept.dtype), factor or 0.0)
