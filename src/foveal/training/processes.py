"""Several processes that train one model: what one finds out all know, and errors stop all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from accelerate import Accelerator

ResultT = TypeVar("ResultT")


class StoppedElsewhereError(Exception):
    """Another process of this training cannot go on, and says why."""


def from_first(accelerator: Accelerator, action: Callable[[], ResultT]) -> ResultT:
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
    return isinstance(error, ValueError | OSError | StoppedElsewhereError)
