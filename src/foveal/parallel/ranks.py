"""Processes that share a sequence: who they are, and the two ways in which they exchange rows.

All names of torch.distributed that may move are in this module.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

ResultT = TypeVar("ResultT")

# torch 2.13 gives the old name up
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Ranks(Protocol):
    """What hands rows from rank to rank; every rank calls it at the same places.

    Attributes:
        size: number of ranks.
        rank: this one, from 0.
        device: where the small tensors that say who wants what must lie, None = anywhere.
    """

    size: int
    rank: int
    device: torch.device | None

    def exchange(self, rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
        """Rows (sum of `sent`, ...), those for rank 0 first -> (sum of `received`, ...)."""

    def gather(self, rows: Tensor, sizes: list[int]) -> Tensor:
        """Rows of every rank, `sizes` of them each, those of rank 0 first."""


class Group:
    """Ranks that are the processes of a group."""

    def __init__(self, group: Any) -> None:
        self._group = weakref.ref(group)
        self.size, self.rank = dist.get_world_size(group), dist.get_rank(group)
        cuda = dist.get_backend(group) == "nccl"
        self.device = torch.device("cuda", torch.cuda.current_device()) if cuda else None

    @property
    def group(self) -> Any:
        """The group itself.

        Raises:
            RuntimeError: it has been destroyed.
        """
        group = self._group()
        if group is None:
            raise RuntimeError("the process group of this mesh has been destroyed; make another.")
        return group

    def exchange(self, rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
        found = rows.new_empty((sum(received), *rows.shape[1:]))
        dist.all_to_all_single(found, rows.contiguous(), received, sent, group=self.group)
        return found

    def gather(self, rows: Tensor, sizes: list[int]) -> Tensor:
        most = max(sizes)
        if min(sizes) == most:
            found = rows.new_empty((self.size * most, *rows.shape[1:]))
            _all_gather(found, rows.contiguous(), group=self.group)
            return found
        padded = rows.new_zeros((most, *rows.shape[1:]))
        padded[: len(rows)] = rows
        parts = self.gather(padded, [most] * self.size).split(most)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


class Simulated:
    """One of many ranks that are threads of this process: see `simulate`."""

    device: torch.device | None = None

    def __init__(self, rank: int, board: _Board) -> None:
        self.rank, self.size, self._board = rank, board.size, board
        self.bytes_received = 0
        """From others, through `exchange` and `gather`, since it was last set to 0."""

    def exchange(self, rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
        parts = self._board.post(self.rank, rows.detach().split(sent))
        mine = [part[self.rank] for part in parts]
        return self._counted(mine)

    def gather(self, rows: Tensor, sizes: list[int]) -> Tensor:
        return self._counted(self._board.post(self.rank, rows.detach()))

    def _counted(self, parts: Sequence[Tensor]) -> Tensor:
        others = (part for number, part in enumerate(parts) if number != self.rank)
        self.bytes_received += sum(part.numel() * part.element_size() for part in others)
        return torch.cat(list(parts))


class _Board:
    """Where the threads of a simulation leave what the others take."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._posted: list[Any] = [None] * size
        self._barrier = threading.Barrier(size, timeout=60)

    def post(self, rank: int, what: Any) -> list[Any]:
        self._posted[rank] = what
        self._barrier.wait()
        found = list(self._posted)
        self._barrier.wait()
        return found

    def give_up(self) -> None:
        self._barrier.abort()


def simulate(size: int, act: Callable[[Simulated], ResultT]) -> list[ResultT]:
    """What `act` returns on each of `size` ranks, which are threads of this process.

    Everything that takes a mesh takes a simulated rank, backward passes included, so that what
    runs on many machines can be tested on one.

    Raises:
        Exception: that of the first rank that failed.
    """
    board = _Board(size)
    results: list[Any] = [None] * size
    errors: dict[int, BaseException] = {}

    def run(rank: int) -> None:
        try:
            results[rank] = act(Simulated(rank, board))
        except BaseException as error:
            errors[rank] = error
            board.give_up()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    for error in errors.values():
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    for error in errors.values():
        raise error
    return results


_GROUPS: weakref.WeakKeyDictionary[Any, Group] = weakref.WeakKeyDictionary()
"""What the groups remember; torch holds each until it is destroyed."""


def as_ranks(mesh: Any) -> Ranks:
    """Ranks of a one-dimensional DeviceMesh, such as mesh["cp"], or of a process group.

    Raises:
        TypeError: it is neither.
        ValueError: the mesh has several dimensions.
    """
    if isinstance(mesh, Simulated | Group):
        return mesh
    group = mesh
    if hasattr(mesh, "get_group"):
        if mesh.ndim != 1:
            names = mesh.mesh_dim_names
            raise ValueError(
                f"mesh must have one dimension, got {mesh.ndim} ({names}); name one of them: "
                f'mesh["{names[0] if names else "cp"}"].'
            )
        group = mesh.get_group()
    if isinstance(group, int) and group == dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError("this process is not one of the ranks of mesh; only its ranks call this.")
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(
            "mesh must be a DeviceMesh of one dimension or a process group, got "
            f"{type(mesh).__name__}."
        )
    kept = _GROUPS.get(group)
    if kept is None:
        kept = _GROUPS[group] = Group(group)
    return kept
