"""Results worth keeping: by what their arguments are, bounded in bytes, safe among threads."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor

from foveal.common.locks import thread_lock

Args = ParamSpec("Args")
Result = TypeVar("Result")

MEBIBYTE = 1 << 20


def remember(
    entries: int,
    mebibytes: float = 64,
    key: Callable[..., Hashable] | None = None,
    size: Callable[[Any], int] | None = None,
) -> Callable[[Callable[Args, Result]], Callable[Args, Result]]:
    """Decorator: keep the results of the latest calls, as functools.lru_cache does, but

    * an argument with a `cache_key` (a pattern) counts as that, and every other one together with
      its type, so that True, 1 and 1.0 are three;
    * the tensors of all results together stay below a number of bytes (the latest is kept alone);
    * a result is computed outside of whatever the caller is in (inference mode, a default device,
      torch.func, torch.jit.trace), since it will serve others.

    While a graph is traced nothing is kept. Two threads that miss at once compute twice.
    `key` gives the key of the arguments where that is quicker than to look at each, and `size` the
    bytes of a result where that is quicker than to look for its tensors. The function gets
    `cache_clear()` and `cache_info()`, the latter (entries, bytes).
    """
    make_key = key or _key

    def decorate(function: Callable[Args, Result]) -> Callable[Args, Result]:
        kept: Kept[Result] = Kept(entries, int(mebibytes * MEBIBYTE))

        @functools.wraps(function)
        def wrapped(*args: Args.args, **kwargs: Args.kwargs) -> Result:
            if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
                return function(*args, **kwargs)
            own = make_key(*args, **kwargs)
            found = kept.find(own)
            if found is not None:
                return found[0]
            with outside():
                result = function(*args, **kwargs)
                kept.keep(own, result, None if size is None else size(result))
            return result

        wrapped.cache_clear = kept.clear  # type: ignore[attr-defined]
        wrapped.cache_info = lambda: (len(kept.results), kept.bytes)  # type: ignore[attr-defined]
        return wrapped

    return decorate


class Kept(Generic[Result]):
    """Results by key, the latest last, bounded in number and in the bytes of their tensors."""

    def __init__(self, entries: int, most_bytes: int) -> None:
        self.results: OrderedDict[Hashable, tuple[Result, int]] = OrderedDict()
        self.bytes = 0
        self._tight = False  # whether what comes next may make the oldest go
        self._entries, self._most = entries, most_bytes
        self._lock = thread_lock(self, "_lock")

    def find(self, key: Hashable) -> tuple[Result, int] | None:
        """(result, its bytes), or None."""
        found = self.results.get(key)
        if found is not None and self._tight:  # else no order is needed, and no lock
            with self._lock:
                if key in self.results:
                    self.results.move_to_end(key)
        return found

    def keep(self, key: Hashable, result: Result, size: int | None = None) -> None:
        """Keep a result of so many bytes (None: those of its tensors); the oldest make room."""
        size = num_bytes(result) if size is None else size
        with self._lock:
            before = self.results.pop(key, (result, 0))[1]
            self.results[key] = (result, size)
            self.bytes += size - before
            while len(self.results) > 1 and (
                len(self.results) > self._entries or self.bytes > self._most
            ):
                _, (_, old) = self.results.popitem(last=False)
                self.bytes -= old
            self._tight = 2 * len(self.results) > self._entries or 2 * self.bytes > self._most

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self.results.clear()
            self.bytes, self._tight = 0, False


def _key(*args: Any, **kwargs: Any) -> Hashable:
    return tuple([_part(one) for one in (*args, *kwargs.items())])


def _part(argument: Any) -> Hashable:
    kind = type(argument)
    if kind in _PLAIN:
        return kind, argument
    own = getattr(argument, "cache_key", None)
    if own is not None:
        return own()
    if isinstance(argument, tuple):
        return kind, *[_part(one) for one in argument]
    if dataclasses.is_dataclass(argument) and kind.__eq__ is not object.__eq__:
        return kind, *[_part(getattr(argument, name)) for name in _fields(kind)]
    return kind, argument


_PLAIN = (int, str, bool, torch.dtype, torch.device)


def _fields(kind: Any) -> tuple[str, ...]:
    found = vars(kind).get("_memo_fields")
    if found is None:
        found = kind._memo_fields = tuple([one.name for one in dataclasses.fields(kind)])
    return found


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
        if torch._C._get_tracing_state() is not None:
            stack.enter_context(untraced())
        yield


@contextlib.contextmanager
def untraced() -> Iterator[None]:
    """What is asked here is no part of the graph that torch.jit.trace records; sizes are ints."""
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch._C._set_tracing_state(state)  # type: ignore[attr-defined]


def sizes_of(x: Tensor) -> torch.Size:
    """x.shape, in ints also where torch.jit.trace makes tensors of them."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is None:
        return x.shape
    with untraced():
        return x.shape
