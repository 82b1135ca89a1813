"""Results worth keeping: by what their arguments are, bounded in bytes, safe among threads."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor

Args = ParamSpec("Args")
Result = TypeVar("Result")

MEBIBYTE = 1 << 20


def remember(
    entries: int, mebibytes: float = 64
) -> Callable[[Callable[Args, Result]], Remembered[Args, Result]]:
    """Decorator: keep the results of the latest calls, as functools.lru_cache does, but

    * an argument with a `cache_key` (a pattern) counts as that, and every other one together with
      its type, so that True, 1 and 1.0 are three;
    * the tensors of all results together stay below a number of bytes (the latest is kept alone);
    * a result is computed outside of whatever the caller is in (inference mode, a default device,
      torch.func), since it will serve others.

    While a graph is traced nothing is kept. Two threads that miss at once compute twice.
    """
    return lambda function: Remembered(function, entries, int(mebibytes * MEBIBYTE))


class Remembered(Generic[Args, Result]):
    """A function that remembers; see `remember`."""

    def __init__(self, function: Callable[Args, Result], entries: int, most_bytes: int) -> None:
        functools.update_wrapper(self, function)
        self._function, self._entries, self._most = function, entries, most_bytes
        self._kept: OrderedDict[Hashable, tuple[Result, int]] = OrderedDict()
        self._lock = threading.Lock()
        self._bytes = 0

    def __call__(self, *args: Args.args, **kwargs: Args.kwargs) -> Result:
        if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
            return self._function(*args, **kwargs)
        key: Hashable = tuple([_part(one) for one in (*args, *kwargs.items())])
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
                return found[0]
        with outside():
            result = self._function(*args, **kwargs)
        self._keep(key, result)
        return result

    def _keep(self, key: Hashable, result: Result) -> None:
        size = num_bytes(result)
        with self._lock:
            _, before = self._kept.pop(key, (None, 0))
            self._kept[key] = (result, size)
            self._bytes += size - before
            while len(self._kept) > 1 and (
                len(self._kept) > self._entries or self._bytes > self._most
            ):
                _, (_, old) = self._kept.popitem(last=False)
                self._bytes -= old

    def cache_clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._kept.clear()
            self._bytes = 0

    def cache_info(self) -> tuple[int, int]:
        """(entries, bytes) that are kept."""
        return len(self._kept), self._bytes


def _part(argument: Any) -> Hashable:
    own = getattr(argument, "cache_key", None)
    if own is not None:
        return own()
    kind = type(argument)
    if isinstance(argument, tuple):
        return kind, *[_part(one) for one in argument]
    if dataclasses.is_dataclass(argument) and kind.__eq__ is not object.__eq__:
        return kind, *[_part(getattr(argument, f.name)) for f in dataclasses.fields(argument)]
    return kind, argument


def num_bytes(value: Any) -> int:
    """Bytes of the tensors in a value: of dataclasses, tuples, lists, dicts and plain objects."""
    return _sum_bytes(value, set())


def _sum_bytes(value: Any, seen: set[int]) -> int:
    if id(value) in seen:
        return 0
    if isinstance(value, Tensor):
        seen.add(id(value))
        return value.numel() * value.element_size()
    parts: Any = ()
    if isinstance(value, dict):
        parts = value.values()
    elif isinstance(value, tuple | list):
        parts = value
    elif dataclasses.is_dataclass(value) or hasattr(value, "__dict__"):
        if isinstance(value, type) or callable(value):
            return 0
        parts = getattr(value, "__dict__", {}).values()
    seen.add(id(value))
    return sum(_sum_bytes(part, seen) for part in list(parts))


@contextlib.contextmanager
def outside() -> Iterator[None]:
    """What is made here are plain tensors of the CPU, whatever mode the caller is in."""
    with contextlib.ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if torch._C._functorch.peek_interpreter_stack() is not None:
            from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

            stack.enter_context(temporarily_clear_interpreter_stack())
        if torch._C._len_torch_function_stack():
            stack.enter_context(torch.device("cpu"))
        yield
