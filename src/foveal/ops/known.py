"""A call like one before: what was decided for it, found by one look.

To check a call and to choose for it takes longer than short attention itself. Whatever either
depends on is in the key, so nothing here can be out of date; a call that is out of the ordinary
has no key.

To make and find a key takes 3 us where the shortest attention takes 25. So `attend` compares a
call first, in a third of that, with the latest of its pattern: torch compares the three tensors in
one step, as it does before it runs what was compiled.
"""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from foveal.common.memo import Kept, num_bytes
from foveal.ops.define import is_untraced, is_unwatched
from foveal.ops.dense import Fused
from foveal.ops.implementations import Implementation
from foveal.ops.sharded import LOCAL, in_context_parallel
from foveal.ops.work import Call, Run, Work
from foveal.patterns import Pattern


@dataclass(slots=True)
class Latest:
    """A call of one pattern object, as it is told from others without a key."""

    pattern: weakref.ref[Pattern]
    alike: Callable[[Tensor, Tensor, Tensor], bool]
    graded: bool | None  # whether gradients were on; None where no tensor asks for any
    impl: str | None
    threads: int
    forced: object  # FOVEAL_IMPL
    native: object  # FOVEAL_NATIVE
    factor: float  # of the products, unless the call names another
    run: Run
    fused: Fused | None  # what it is, if it is a call of SDPA that needs neither factor nor heads


class Known:
    """What computes the calls of one key."""

    __slots__ = ("_latest", "_left", "run")

    def __init__(self, run: Run) -> None:
        self.run = run
        self._latest: Latest | None = None
        self._left = 64  # pattern objects to learn: those that are made for each call do not pay

    def latest(
        self, q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, impl: str | None
    ) -> Latest | None:
        """How calls like this one are told from others; None where that cannot be or not pay."""
        if self._latest is not None and self._latest.pattern() is pattern:
            return self._latest
        if not self._left or q is k or k is v or v is q or not pattern.has_fixed_key():
            return None  # the comparison takes no tensor twice
        self._left -= 1
        try:  # sizes, dtype, device, type and what it dispatches to; strides may be any
            guards: Any = torch._C._dynamo.guards
            strides = [[None] * 4] * 3
            alike = guards.TensorGuards(
                q, k, v, dynamic_dims_sizes=None, dynamic_dims_strides=strides
            ).check
        except (AttributeError, TypeError):  # it is torch's own, and may move
            self._left = 0
            return None
        graded = torch.is_grad_enabled() if _asks_grad(q, k, v) else None
        self._latest = Latest(
            weakref.ref(pattern, _forgets(id(pattern))),
            alike,
            graded,
            impl,
            torch.get_num_threads(),
            ENVIRON.get(IMPL),
            ENVIRON.get(NATIVE),
            q.shape[3] ** -0.5,
            self.run,
            _alone(self.run, q.shape[3]),
        )
        return self._latest


class Calls(Kept[Known]):
    """Calls by key, and the latest of each of some pattern objects by its id."""

    MOST_PATTERNS = 256

    def __init__(self, entries: int, most_bytes: int) -> None:
        super().__init__(entries, most_bytes)
        self.latest: dict[int, Latest] = {}

    def keep(self, key: Hashable, result: Known, size: int | None = None) -> None:
        """As Kept's; what has to go does not live on as the latest of a pattern."""
        super().keep(key, result, size)
        if self._tight:
            self.latest.clear()

    def clear(self) -> None:
        """Forget all."""
        super().clear()
        self.latest.clear()

    def learn(self, pattern: Pattern, latest: Latest) -> None:
        """Compare the next call of a pattern with this one first."""
        if self._tight or len(self.latest) >= self.MOST_PATTERNS:
            self.latest.clear()
        if not self._tight:
            self.latest[id(pattern)] = latest


CALLS = Calls(entries=1024, most_bytes=64 << 20)
LATEST = CALLS.latest


def _forgets(key: int) -> Callable[[Any], object]:
    """For when a pattern goes: its id may soon be another's."""

    def forget(_: Any, pop: Callable[..., object] = LATEST.pop) -> None:
        pop(key, None)

    return forget


# os.environ.get takes 1 us, most of it for a name that is not there
ENVIRON = getattr(os.environ, "_data", os.environ)
IMPL, NATIVE = map(getattr(os.environ, "encodekey", str), ("FOVEAL_IMPL", "FOVEAL_NATIVE"))
num_threads, grad_enabled = torch.get_num_threads, torch.is_grad_enabled


def find_by_key(
    key: Hashable,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    key_mask: Tensor | None,
    impl: str | None,
) -> Run | None:
    """What computes calls with this key, of which this is one."""
    found = CALLS.find(key)
    if found is None:
        return None
    known = found[0]
    if key_mask is None and (latest := known.latest(q, k, v, pattern, impl)) is not None:
        CALLS.learn(pattern, latest)
    return known.run


def key_of(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    key_mask: Tensor | None,
    scale: float | Tensor | None,
    dropout_p: float,
    impl: str | None,
    return_lse: bool,
) -> Hashable | None:
    """Equal for calls that are alike; None where nothing may be taken for granted.

    That is where a mode, transform or trace is at work, for tensors of other kinds or off the
    CPU, with dropout or the log-sum-exp, and wherever an argument is not what it should be. Not
    to be asked while the compiler is at work.
    """
    if (
        not (type(q) is type(k) is type(v) is Tensor and q.is_cpu and k.is_cpu and v.is_cpu)
        or not isinstance(pattern, Pattern)
        or not (scale is None or (type(scale) is float and 0.0 < scale < 1e30))
        or type(dropout_p) is not float
        or dropout_p
        or return_lse is not False
        or not (impl is None or type(impl) is str)
        or not (is_unwatched() and is_untraced())
        or (functional.scaled_dot_product_attention is not LOCAL and in_context_parallel())
    ):
        return None
    mask: Hashable = None
    if key_mask is not None:
        if type(key_mask) is not Tensor or not key_mask.is_cpu:
            return None
        mask = key_mask.shape, key_mask.dtype
    return (
        pattern.cache_key(),
        q.shape,
        k.shape,
        v.shape,
        q.dtype,
        k.dtype,
        v.dtype,
        torch.is_grad_enabled() and _asks_grad(q, k, v),
        mask,
        impl,
        torch.get_num_threads(),
        ENVIRON.get(IMPL),
        ENVIRON.get(NATIVE),
    )


def keep(key: Hashable, one: Implementation, work: Work) -> None:
    """Remember that `one` computes calls with this key."""
    run, held = one.prepared(work) or (_checked(one, work), None)
    CALLS.keep(key, Known(run), num_bytes(held))


def _alone(run: Run, head_dim: int) -> Fused | None:
    """What a run is, if SDPA would multiply with the same factor by itself."""
    usual = 1.0 / math.sqrt(head_dim) == head_dim**-0.5
    return run if usual and isinstance(run, Fused) and not run.grouped else None


def _asks_grad(q: Tensor, k: Tensor, v: Tensor) -> bool:
    return q.requires_grad or k.requires_grad or v.requires_grad


def _checked(one: Implementation, work: Work) -> Run:
    """What is left when a call is known to be right."""
    rest = work[1:]  # patterns that are alike now may change apart

    def run(
        q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, key_mask: Tensor | None, scale: float
    ) -> Tensor:
        return one.run(Call(Work(pattern, *rest), q, k, v, None, key_mask, scale, 0.0))[0]

    return run
