"""How the processes of a training share its work: examples, parts of a sequence, weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How several processes train one model.

    Attributes:
        shard: "none", so that each process holds all weights and optimizer state; or "fsdp", so
            that each holds a part of every block (FSDP2).
        sequence: processes that share each sequence, in consecutive parts.
    """

    shard: Literal["none", "fsdp"] = "none"
    sequence: int = 1


@dataclass(frozen=True)
class Layout:
    """Which part of the work a process has; those that share a sequence are neighbours.

    Attributes:
        rank, size: this process among all.
        config: how they share.
        device: type of the devices that they compute on.

    Raises:
        ValueError: as many processes cannot share sequences in that way.
    """

    rank: int = 0
    size: int = 1
    config: ParallelConfig = ParallelConfig()
    device: str = "cpu"

    def __post_init__(self) -> None:
        shared = self.config.sequence
        if shared < 1:
            raise ValueError(f"parallel.sequence must be at least 1, got {shared}.")
        if self.size % shared:
            raise ValueError(
                "parallel.sequence must divide the number of processes, "
                f"{self.size}, got {shared}; start {shared} or a multiple of it, such as: "
                f"torchrun --nproc-per-node {shared} -m foveal.cli train ..."
            )

    @property
    def data_size(self) -> int:
        """Groups of processes that see different examples."""
        return self.size // self.config.sequence

    @property
    def data_rank(self) -> int:
        """This process's among these groups."""
        return self.rank // self.config.sequence

    @cached_property
    def mesh(self) -> DeviceMesh:
        """All processes as (dp, cp), "dp_replicate" or "dp_shard" by `cp`, Accelerate's names.

        Every process must ask for it at the same place: groups are made.
        """
        from torch.distributed.device_mesh import init_device_mesh

        data = "dp_shard" if self.config.shard == "fsdp" else "dp_replicate"
        shape = (self.data_size, self.config.sequence)
        return init_device_mesh(self.device, shape, mesh_dim_names=(data, "cp"))
