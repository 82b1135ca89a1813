"""Batch norms of a training on several processes: statistics are of the batch of all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from foveal.training.layout import Layout

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from foveal.layers.batch_norm import Gather


def share_over_processes(model: nn.Module, layout: Layout) -> int:
    """Batch norms of a model -> statistics over all processes that have other examples.

    Where gradients are accumulated, each micro-batch has its own, as with one process. All
    processes call it; alone, or without batch norms, nothing changes.

    Returns:
        how many there are.
    """
    if layout.data_size == 1:
        return 0
    from foveal.layers.batch_norm import share_batch_norms

    # the first dimension of the mesh: those that have other examples
    group = layout.mesh.get_group(0) if layout.config.sequence > 1 else None
    return share_batch_norms(model, _gather(group, layout.data_size))


def _gather(group: ProcessGroup | None, size: int) -> Gather:
    import torch.distributed as dist

    def gather(row: Tensor) -> Tensor:
        found = row.new_empty(size, len(row))
        dist.all_gather(list(found), row.contiguous(), group=group)
        return found

    return gather
