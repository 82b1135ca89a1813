"""A call like the latest of its pattern, told from others without a key.

The shortest attention takes 50 us, and a key 3 more. So `attend` compares a call first, in less
than 2, with the latest of its pattern: torch compares the three tensors in one step, as it does
before it runs what was compiled. Between two calls the caches are cold, so what counts is how
much Python is touched, not how long it takes in a loop.
"""

from __future__ import annotations

import functools
import math
import os
import weakref
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling
from torch.nn import functional

from foveal.ops.define import dispatch_modes, function_modes, profiled
from foveal.ops.dense import Fused
from foveal.ops.fused import make_differentiable
from foveal.ops.sharded import LOCAL, in_context_parallel
from foveal.ops.work import Run
from foveal.patterns import Pattern

Alike = Callable[[Tensor, Tensor, Tensor], bool]
Args = ParamSpec("Args")
Result = TypeVar("Result")

# os.environ.get takes 1 us, most of it for a name that is not there
ENVIRON = getattr(os.environ, "_data", os.environ)
IMPL, NATIVE = map(getattr(os.environ, "encodekey", str), ("FOVEAL_IMPL", "FOVEAL_NATIVE"))
environ = ENVIRON.get
num_threads, grad_enabled = torch.get_num_threads, torch.is_grad_enabled


Glance = Callable[[Tensor, Tensor, Tensor, Pattern, str | None, float | None], Tensor | None]
"""(q, k, v, pattern, impl, scale) -> out of a call that is like the one it was made of; None for
any other call."""


class _Latest(dict[int, Glance | None]):
    def __missing__(self, key: int) -> None:  # cheaper to ask than `get`
        return None


LATEST = _Latest()
"""That of the latest call of each of some pattern objects, by its id."""

MOST_PATTERNS = 256


def at_a_glance(attend: Callable[Args, Result]) -> Callable[Args, Result]:
    """Decorator of `attend`: a call like the latest of its pattern needs nothing of it."""

    def glanced(q: Any, k: Any, v: Any, pattern: Any, **options: Any) -> Any:
        one = None if is_dynamo_compiling() else LATEST[id(pattern)]  # and nobody else's id
        if one is not None:
            if options:
                found = _with(one, q, k, v, pattern, **options)
            else:
                found = one(q, k, v, pattern, None, None)
            if found is not None:
                return found
        return attend(q, k, v, pattern, **options)

    return cast(Callable[Args, Result], functools.wraps(attend)(glanced))


def _with(
    one: Glance,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    *,
    bias: object = None,
    key_mask: object = None,
    scale: Any = None,
    dropout_p: object = 0.0,
    impl: Any = None,
    return_lse: object = False,
    sinks: object = None,
    softcap: object = None,
    q_offset: object = 0,
    **unknown: object,
) -> Tensor | None:
    """The call if its options are but names of the usual, an implementation or a factor."""
    if (
        bias is key_mask is sinks is softcap is None
        and (scale is None or (type(scale) is float and 0.0 < scale < 1e30))
        and type(dropout_p) is float
        and not dropout_p
        and return_lse is False
        and type(q_offset) is int
        and not q_offset
        and not unknown
    ):
        return one(q, k, v, pattern, impl, scale)
    return None


def learn(pattern: Pattern, one: Glance) -> None:
    """Compare the next call of a pattern with this one first."""
    if len(LATEST) >= MOST_PATTERNS:
        LATEST.clear()
    key = id(pattern)
    if key not in _WATCHED:
        _WATCHED[key] = _watched(pattern)
    LATEST[key] = one


_WATCHED: dict[int, weakref.ref[Pattern]] = {}
"""By id, references to patterns that were learned: one that is not held would forget nothing."""


def _watched(pattern: Pattern) -> weakref.ref[Pattern]:
    """A reference to a pattern, with which its call is forgotten: its id may soon be another's."""
    key, latest, others = id(pattern), LATEST.pop, _WATCHED.pop

    def forget(_: Any) -> None:
        latest(key, None)
        others(key, None)

    return weakref.ref(pattern, forget)


def glance_of(q: Tensor, k: Tensor, v: Tensor, impl: str | None, run: Run) -> Glance | None:
    """How calls like this one, which `run` computes, are told from others; None: in no way."""
    alike = _comparison(q, k, v)
    if alike is None:
        return None
    graded = torch.is_grad_enabled() if asks_grad(q, k, v) else None  # None: it does not matter
    threads, forced, native = num_threads(), environ(IMPL), environ(NATIVE)
    factor, fused = q.shape[3] ** -0.5, _alone(run, q.shape[3])
    mask, causal = (None, False) if fused is None else (fused.mask, fused.causal)
    named, alone = impl, fused is not None
    torchs = alone and mask is None  # a mode sees nothing but torch's own call

    def glance(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        pattern: Pattern,
        impl: str | None,
        scale: float | None,
    ) -> Tensor | None:
        try:
            if q.is_nested or k.is_nested or v.is_nested:  # torch, comparing, would abort
                return None
        except AttributeError:  # no tensor
            return None
        if (
            alike(q, k, v)
            and impl is named
            and forced == environ(IMPL)
            and native == environ(NATIVE)
            and threads == num_threads()
            and (graded is None or graded is grad_enabled())
            and forward_ad._current_level < 0
            and (torchs or not dispatch_modes())
            and (functional.scaled_dot_product_attention is LOCAL or not in_context_parallel())
        ):
            if alone and scale is None:
                out = LOCAL(q, k, v, mask, 0.0, causal)
                if graded:
                    make_differentiable(out)
                return out
            if not (function_modes() or profiled()):  # which see torch's own call anyhow
                return run(q, k, v, pattern, None, factor if scale is None else scale)
        return None

    return glance


def asks_grad(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether any of three tensors wants a gradient."""
    return q.requires_grad or k.requires_grad or v.requires_grad


def _comparison(q: Tensor, k: Tensor, v: Tensor) -> Alike | None:
    """Whether others have the sizes, dtype, device, type and dispatch of these; any strides."""
    if q is k or k is v or v is q:
        return None  # it takes no tensor twice
    try:
        guards: Any = torch._C._dynamo.guards
        strides = [[None] * 4] * 3
        one = guards.TensorGuards(q, k, v, dynamic_dims_sizes=None, dynamic_dims_strides=strides)
        return cast(Alike, one.check)
    except (AttributeError, TypeError):  # it is torch's own, and may move
        return None


def _alone(run: Run, head_dim: int) -> Fused | None:
    """What a run is, if SDPA would multiply with the same factor by itself."""
    usual = 1.0 / math.sqrt(head_dim) == head_dim**-0.5
    return run if usual and isinstance(run, Fused) and not run.grouped else None
