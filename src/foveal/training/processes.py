"""Several processes that train one model: what one finds out all know, and errors stop all."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from accelerate import Accelerator, PartialState

ResultT = TypeVar("ResultT")


class StoppedElsewhereError(Exception):
    """Another process of this training cannot go on, and says why."""


def from_first(accelerator: Accelerator | PartialState, action: Callable[[], ResultT]) -> ResultT:
    """What `action` returns on the first process, which alone performs it, on every process.

    Raises:
        StoppedElsewhereError: on the others, if it raises on the first.
    """
    if accelerator.num_processes == 1:
        return action()
    from accelerate.utils import broadcast_object_list

    error: Exception | None = None
    found: list[object] = [None, None]
    if accelerator.is_main_process:
        try:
            found[0] = action()
        except Exception as raised:
            error, found[1] = raised, str(raised)
    broadcast_object_list(found)
    if error is not None:
        raise error
    if found[1] is not None:
        raise StoppedElsewhereError(found[1])
    return found[0]  # type: ignore[return-value]


_LAUNCH = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
_FAREWELL = 10.0
_kept: list[Any] = []
"""Stores: that of the first process serves the others as long as it is there."""


def launched() -> int:
    """How many processes a launcher says that it has started; 1 where none says so.

    Raises:
        ValueError: what it has put into the environment is no number, or does not fit.
    """
    for name in _NUMBERS:
        value = os.environ.get(name, "0")
        if not (value.isascii() and value.isdigit()):
            raise ValueError(
                f"{name} in the environment must be a whole number, as launchers write it, got "
                f"{name}={value!r}; start with torchrun, or unset it."
            )
    size, rank = (int(os.environ.get(name, "0")) for name in ("WORLD_SIZE", "RANK"))
    if size > 1 and rank >= size:
        raise ValueError(
            f"RANK in the environment must be below WORLD_SIZE, got RANK={rank} of "
            f"WORLD_SIZE={size}; start with torchrun, or unset both."
        )
    return max(1, size)


def before_group(action: Callable[[], str]) -> str:
    """What `action` returns in the first process of a launch, before these are a group.

    By way of the store through which they will find each other, for what a group is made with is
    not known yet. Where no launcher says that there are several, every process is the first.

    Args:
        action: gives a text that is not empty.

    Raises:
        StoppedElsewhereError: on the others, if it raises on the first.
        ValueError: see `launched`.
    """
    size = launched()
    if size == 1 or not all(os.environ.get(name) for name in _LAUNCH):
        return action()
    store, rank, _ = next(dist.rendezvous("env://"))
    _kept.append(store)
    said, heard = (f"foveal/{len(_kept)}/{name}" for name in ("said", "heard"))
    if rank:
        told = store.get(said).decode()
        store.add(heard, 1)
        if not told:
            raise StoppedElsewhereError("the first process has not started")
        return told
    try:
        found = action()
    except BaseException:
        store.set(said, "")
        until = time.monotonic() + _FAREWELL
        while store.add(heard, 0) < size - 1 and time.monotonic() < until:
            time.sleep(0.01)
        raise
    store.set(said, found)
    return found


def share_tensors(accelerator: Accelerator, tensors: Iterable[Tensor]) -> None:
    """Fill tensors of any shape, the same ones on every process, with those of the first one."""
    if accelerator.num_processes > 1:
        for tensor in tensors:
            sent = tensor.detach().to(accelerator.device).contiguous()
            dist.broadcast(sent, 0)
            tensor.detach().copy_(sent)


@dataclass(frozen=True)
class _Blank:
    """Stands for a tensor that is sent by itself."""

    shape: torch.Size
    dtype: torch.dtype


def state_of_first(accelerator: Accelerator, read: Callable[[], Any]) -> Any:
    """What `read` gives on the first process: containers of tensors, numbers and texts.

    Tensors come to the CPU of every process, one after the other.

    Raises:
        StoppedElsewhereError: on the others, if it raises on the first.
    """
    if accelerator.num_processes == 1:
        return read()
    first: list[Any] = []

    def form_of() -> Any:
        first.append(read())
        return _mapped(first[0], lambda tensor: _Blank(tensor.shape, tensor.dtype))

    form = from_first(accelerator, form_of)
    state = first[0] if first else _mapped(form, lambda it: torch.empty(it.shape, dtype=it.dtype))
    tensors: list[Tensor] = []
    _mapped(state, tensors.append)
    share_tensors(accelerator, tensors)
    return state


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """Containers with all their tensors, or what stands for them, changed."""
    if isinstance(value, Tensor | _Blank):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(one, change) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_mapped(one, change) for one in value)
    return value


def rows_of_all(rows: Tensor) -> tuple[Tensor, int]:
    """Rows (batch, features) of all processes, (all, features), and the place of the own ones.

    Every process must have as many. Gradients come back to where the rows are from.
    """
    return _Gathered.apply(rows), dist.get_rank() * len(rows)


class _Gathered(torch.autograd.Function):
    """All rows forwards, the sum over processes of the own rows' gradients backwards."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.count = len(rows)
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        whole = grads[0].contiguous()
        dist.all_reduce(whole)
        return whole[dist.get_rank() * ctx.count :][: ctx.count]


def together(accelerator: Accelerator, action: Callable[[], ResultT]) -> ResultT:
    """What `action` returns here; if it fails on any process, none goes on without that one.

    Raises:
        ValueError: on the first process, if another one was given something it cannot use.
        StoppedElsewhereError: on the others, if the first speaks for them.
    """
    if accelerator.num_processes == 1:
        return action()
    from accelerate.utils import gather_object

    result, error = None, None
    try:
        result = action()
    except Exception as raised:
        error = raised
    said: list[str | None] = gather_object([None if error is None else str(error)])
    failed = [number for number, text in enumerate(said) if text is not None]
    if not failed:
        return result  # type: ignore[return-value]
    if error is not None and (accelerator.is_main_process or not _is_of_the_user(error)):
        raise error
    text = f"process {failed[0]} of {len(said)}: {said[failed[0]]}"
    if accelerator.is_main_process:
        raise ValueError(text)
    raise StoppedElsewhereError(text)


def _is_of_the_user(error: Exception) -> bool:
    """Whether the message says everything, so that no process but the first need repeat it."""
    return isinstance(error, ValueError | OSError | ImportError | StoppedElsewhereError)
