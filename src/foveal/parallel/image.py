"""Image models over rows of the image: each layer reads what it needs of the other ranks' rows."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from foveal.layers import DSSA, HaloAttention, SeparableAttention
from foveal.layers.batch_norm import batch_norm
from foveal.layers.patch import ChanLayerNorm, DropPath
from foveal.layers.relative_position import RelPosEmb
from foveal.layers.rows import Rows
from foveal.models.image import ImageModel
from foveal.parallel.around import aligned, around, reach_of
from foveal.parallel.moving import of_all
from foveal.parallel.ranks import as_ranks
from foveal.parallel.whole import Image, Shared, Sizes

_BY_PIXEL = (
    *(nn.Linear, nn.LayerNorm, ChanLayerNorm, nn.Identity, nn.Dropout, RelPosEmb),
    *(nn.Sequential, nn.ModuleList),  # empty ones
    *(nn.GELU, nn.ReLU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.LeakyReLU, nn.Mish),
    nn.Conv1d,  # over the channels, or of width 1
)
_WHOLE = (nn.SyncBatchNorm,)


def shard_rows(model: nn.Module, mesh: Any) -> nn.Module:
    """Let every forward pass of an image model take this rank's rows of the images.

    The parts follow each other by rank, with any number of rows, as `take(images, mesh, dim=2)`
    cuts them. Logits, or pooled features, are those of the whole images, the same on every rank;
    maps (`features_only`, `forward_features`, no pooling) are of the own rows. Batch norms have
    the statistics of the whole batch. Gradients of weights add up over the ranks to those of one
    process, where each takes the same loss of the logits, or the loss of the own rows of maps
    (DistributedDataParallel averages: multiply the loss by the number of ranks).

    What a rank computes twice is least where it has many rows, cut at a multiple of `alignment`.
    What drops whole images, or pooled features, is drawn by rank 0. A SyncBatchNorm stays what it
    is: give it the processes that have rows or other images.

    Args:
        model: a HaloNet or SepViT, or another image model of their layers, as it is: nothing is
            copied.
        mesh: the ranks: a DeviceMesh of one dimension such as mesh["cp"], or a process group.

    Returns:
        the model.

    Raises:
        TypeError: mesh is no group of ranks.
        ValueError: another model, a layer that cannot be cut into rows, or a second call; in a
            forward pass of training, dropout of the pixels of a map.
    """
    ranks = as_ranks(mesh)
    if not isinstance(model, ImageModel):
        raise ValueError(
            f"shard_rows takes an image model such as HaloNet, got {type(model).__name__}; in a "
            "model of your own, call foveal.parallel.fetch."
        )
    if not model.rows.here:
        raise ValueError("this model is sharded already; shard_rows is called once.")
    image = Image(ranks)
    changes = [_change(name, layer, image) for name, layer in model.named_modules()]
    for change in changes:
        change()
    model._stages = functools.partial(_stages, model, model._stages, image)  # type: ignore[method-assign]
    head = functools.partial(_head, model, model.forward_head, ranks.size)
    model.forward_head = head  # type: ignore[method-assign]
    return model


def alignment(model: ImageModel) -> int:
    """Rows of an image at whose multiples `take` cuts it best: `take(..., align=alignment(net))`.

    There no block of attention, window or strided pixel of any stage lies on two ranks. Images
    may be cut anywhere else as well; more is computed twice then, or sent to and fro.

    Example:
        >>> from foveal import parallel
        >>> from foveal.models import create_model
        >>> parallel.alignment(create_model("halonet_h0"))  # blocks of 8 in a 32nd of the image
        256
    """
    found = 1
    for stage in model.feature_info:
        layers = model.get_submodule(stage["module"]).modules()
        units = [unit_of(layer) for layer in layers]
        found = math.lcm(found, *(unit * stage["reduction"] for unit in units))
    return found


def unit_of(layer: nn.Module) -> int:
    """Rows of the map that a layer treats alike: those of a block or a window, 1 for any other."""
    if isinstance(layer, DSSA | SeparableAttention) and not getattr(layer, "is_global", False):
        return layer.window_size[0]
    return layer.block_size[0] if isinstance(layer, HaloAttention) else 1


def _stages(
    model: ImageModel, stages: Callable[[Tensor], Iterator[Tensor]], image: Image, x: Tensor
) -> Iterator[Tensor]:
    _check_dropout(model)
    image.enter(x.shape[2])
    yield from stages(x)


def _check_dropout(model: ImageModel) -> None:
    """Raise ValueError where ranks would drop pixels of a map, each as it likes."""
    if not model.training:
        return
    for name, layer in model.named_modules():
        rate = layer.p if isinstance(layer, nn.Dropout) else getattr(layer, "dropout", 0.0)
        if isinstance(rate, float) and rate > 0 and layer.training:
            raise ValueError(
                f"dropout depends on the number of ranks that share a picture, got {rate} in "
                f"{name}; train with dropout of 0, or each picture on one rank."
            )


def _head(
    model: ImageModel, head: Callable[..., Tensor], ranks: int, x: Tensor, pre_logits: bool = False
) -> Tensor:
    """The head, whose result each of the ranks has: their gradients add up to one."""
    out = head(x, pre_logits)
    return _Part.apply(out, ranks) if model.global_pool else out


def _batch_norm(layer: _BatchNorm, image: Image, x: Tensor) -> Tensor:
    """A batch norm of the own rows x (batch, dim, own rows, width), by the whole maps -> same."""
    return batch_norm(layer, x, lambda row: of_all(row, image.ranks), evaluating=True)


def _drop_path(layer: DropPath, drop: Callable[[Tensor], Tensor], rows: Rows, x: Tensor) -> Tensor:
    """Stochastic depth, of which all ranks drop the same."""
    if not layer.training or not layer.rate:
        return x
    return x * rows.agreed(drop(x.new_ones(x.shape[0], *[1] * (x.ndim - 1))))


class _Part(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: int) -> Tensor:
        ctx.ranks = ranks
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        return grads[0] / ctx.ranks, None


def _change(name: str, layer: nn.Module, image: Image) -> Callable[[], None]:
    """What is to be done to a layer, once all are known to be of a kind that can be cut.

    Raises:
        ValueError: it cannot.
    """
    sizes = Sizes(image)

    def become(act: Callable[..., Tensor], *given: Any) -> None:
        layer.forward = functools.partial(act, *given)

    if isinstance(layer, _BatchNorm) and not isinstance(layer, _WHOLE):
        return lambda: become(_batch_norm, layer, image)
    if isinstance(layer, DropPath):
        return lambda: become(_drop_path, layer, layer.forward, Shared(image))
    rows = functools.partial(setattr, layer, "rows", Shared(image))
    if isinstance(layer, DSSA | SeparableAttention) and not getattr(layer, "is_global", False):
        dim = 2 if isinstance(layer, DSSA) else 1

        def share() -> None:
            rows()
            become(aligned, layer.forward, layer.window_size[0], dim, sizes)

        return share
    if isinstance(getattr(layer, "rows", None), Rows):
        return rows
    reach = reach_of(layer)
    if reach is not None and not reach.local:
        return lambda: become(around, layer.forward, reach, sizes)
    if (
        reach is None
        and not list(layer.children())
        and not isinstance(layer, (*_BY_PIXEL, *_WHOLE))
    ):
        raise ValueError(
            f"shard_rows cannot cut this model: {name} is a {type(layer).__name__}, of which it "
            "is not known which rows it reads."
        )
    return lambda: None
