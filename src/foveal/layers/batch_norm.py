"""Batch norms whose statistics are of all ranks that have a part of the batch or of its maps."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from foveal.common.dtypes import wide

Gather = Callable[[Tensor], Tensor]
"""A row (values,) of each rank -> the rows of all (ranks, values), in the order of the ranks."""


def share_batch_norms(model: nn.Module, gather: Gather) -> int:
    """Let the batch norms of a model train on the statistics of all ranks; names stay the same.

    SyncBatchNorm is left alone.

    Returns:
        how many there are.
    """
    found = [
        layer
        for layer in model.modules()
        if isinstance(layer, _BatchNorm) and not isinstance(layer, nn.SyncBatchNorm)
    ]
    act = torch.compiler.disable(batch_norm) if found else batch_norm
    for layer in found:  # graphs are cut here, where ranks wait for each other
        shared = functools.partial(act, layer, gather=gather)
        layer.forward = shared  # type: ignore[method-assign]
    return len(found)


def batch_norm(layer: _BatchNorm, x: Tensor, gather: Gather, evaluating: bool = False) -> Tensor:
    """What a batch norm makes of its part of a batch, by the mean and variance of the whole.

    One exchange a direction: every rank sends the mean of its part, the squares of what differs
    from that, and how many values it has, so that parts may be of any size, and no large sum of
    squares loses digits (Chan et al. 1979). Running statistics come out the same on all ranks. The
    gradients of weight and bias are those of the own part, which whoever trains adds up.

    Args:
        layer: evaluated, it exchanges nothing, for ranks evaluate each their own.
        x: (batch, channels, ...); a rank may have no rows.
        gather: how ranks exchange rows.
        evaluating: exchange also where a layer without running statistics is evaluated, as ranks
            must that have parts of the same maps.

    Returns:
        like x.

    Raises:
        ValueError: all ranks together have no more than one value of a channel.
    """
    layer._check_input_dim(x)
    has_kept = layer.running_mean is not None
    if not layer.training and (has_kept or not evaluating):
        kept = (layer.running_mean, layer.running_var, layer.weight, layer.bias)
        return F.batch_norm(x, *kept, training=not has_kept, eps=layer.eps)
    y, mean, variance, count = _Shared.apply(x, layer.weight, layer.bias, layer.eps, gather)
    if layer.training and has_kept:
        _remember(layer, mean, variance * (count / (count - 1)))
    return y


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, gather: Gather
    ) -> tuple[Tensor, ...]:
        mean, variance, count = _moments(x, gather)
        y = F.batch_norm(x, mean, variance, weight, bias, eps=eps)
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt(), count)
        ctx.gather = gather
        ctx.mark_non_differentiable(mean, variance, count)
        return y, mean, variance, count

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, count = ctx.saved_tensors
        grad, dims = wide(grads[0]), _all_but_channels(x)
        normal = (wide(x) - _as(mean, x)) * _as(scale, x)
        of_bias, of_weight = grad.sum(dims), (grad * normal).sum(dims)
        of_x = None
        if ctx.needs_input_grad[0]:
            sums = ctx.gather(torch.cat([of_bias, of_weight])).sum(0) / count
            shift, slope = sums.chunk(2)
            of_x = grad - _as(shift, x) - normal * _as(slope, x)
            of_x = (of_x * _as(scale if weight is None else scale * weight, x)).to(x.dtype)
        if weight is None:
            return of_x, None, None, None, None
        return of_x, of_weight.to(weight.dtype), of_bias.to(weight.dtype), None, None


def _moments(x: Tensor, gather: Gather) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance (channels,) over all ranks, and of how many values, a scalar.

    x: (batch, channels, ...).
    """
    values, channels = wide(x), x.shape[1]
    own = x.numel() // channels
    variance, mean = values.new_zeros(2, channels)
    if own:
        variance, mean = torch.var_mean(values, _all_but_channels(x), correction=0)
    row = torch.cat([mean, variance * own, mean.new_full((1,), own)])
    means, spreads, counts = gather(row).split([channels, channels, 1], 1)
    count = counts.sum()
    if not x.is_cuda and count <= 1:
        raise ValueError(
            f"a batch norm trains on more than one value of each channel, got {int(count)} on all "
            f"ranks together, of shape {tuple(x.shape)} here."
        )
    mean = (counts * means).sum(0) / count
    spread = spreads.sum(0) + (counts * (means - mean).square()).sum(0)
    return mean, spread / count, count


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


def _all_but_channels(x: Tensor) -> list[int]:
    return [dim for dim in range(x.ndim) if dim != 1]


def _as(values: Tensor, x: Tensor) -> Tensor:
    """(channels,) -> what can be multiplied with x (batch, channels, ...)."""
    return values.reshape(-1, *[1] * (x.ndim - 2))
