"""A call like one before: what was decided for it, found by one look.

To check a call and to choose for it takes longer than short attention itself. Whatever either
depends on is in the key, so nothing here can be out of date; a call that is out of the ordinary
has no key. What was found by its key is told at a glance from then on.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable

import torch
from torch import Tensor
from torch.nn import functional

from foveal.common.memo import Kept, num_bytes
from foveal.ops import glance
from foveal.ops.define import is_untraced, is_unwatched
from foveal.ops.glance import ENVIRON, IMPL, NATIVE, Glance, asks_grad
from foveal.ops.implementations import Implementation
from foveal.ops.sharded import LOCAL, in_context_parallel
from foveal.ops.work import Call, Run, Work
from foveal.patterns import Pattern


class Known:
    """What computes the calls of one key."""

    __slots__ = ("_latest", "_left", "run")

    def __init__(self, run: Run) -> None:
        self.run = run
        self._latest: tuple[weakref.ref[Pattern], Glance] | None = None
        self._left = 64  # pattern objects to learn: those that are made for each call do not pay

    def latest(
        self, q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, impl: str | None
    ) -> Glance | None:
        """How calls like this one are told at a glance; None where that cannot be or not pay."""
        if self._latest is not None and self._latest[0]() is pattern:
            return self._latest[1]
        if not self._left or not pattern.has_fixed_key():
            return None
        one = glance.glance_of(q, k, v, impl, self.run)
        if one is not None:
            self._left -= 1
            self._latest = weakref.ref(pattern), one
        return one


class Calls(Kept[Known]):
    """Calls by key, and a glance at the latest of each of some pattern objects."""

    def keep(self, key: Hashable, result: Known, size: int | None = None) -> None:
        """As Kept's; what has to go does not live on as the latest of a pattern."""
        super().keep(key, result, size)
        if self._tight:
            glance.LATEST.clear()

    def clear(self) -> None:
        """Forget all."""
        super().clear()
        glance.LATEST.clear()

    def learn(self, pattern: Pattern, one: Glance) -> None:
        """Compare the next call of a pattern with this one first, unless memory is tight."""
        if self._tight:
            glance.LATEST.clear()
        else:
            glance.learn(pattern, one)


STRIDED = torch.strided
CALLS = Calls(entries=1024, most_bytes=64 << 20)


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
    if key_mask is None and (one := known.latest(q, k, v, pattern, impl)) is not None:
        CALLS.learn(pattern, one)
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
        or not q.layout is k.layout is v.layout is STRIDED
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
    try:
        mask: Hashable = None
        if key_mask is not None:
            if not (type(key_mask) is Tensor and key_mask.is_cpu and key_mask.layout is STRIDED):
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
            torch.is_grad_enabled() and asks_grad(q, k, v),
            mask,
            impl,
            torch.get_num_threads(),
            ENVIRON.get(IMPL),
            ENVIRON.get(NATIVE),
        )
    except RuntimeError:  # nested tensors have no shape
        if any(x.is_nested for x in (q, k, v, key_mask) if x is not None):
            return None
        raise


def keep(key: Hashable, one: Implementation, work: Work) -> None:
    """Remember that `one` computes calls with this key."""
    run, held = one.prepared(work) or (_checked(one, work), None)
    CALLS.keep(key, Known(run), num_bytes(held))


def _checked(one: Implementation, work: Work) -> Run:
    """What is left when a call is known to be right."""
    rest = work[1:]  # patterns that are alike now may change apart

    def run(
        q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, key_mask: Tensor | None, scale: float
    ) -> Tensor:
        return one.run(Call(Work(pattern, *rest), q, k, v, None, key_mask, scale, 0.0))[0]

    return run
