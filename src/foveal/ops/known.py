"""A call like one before: what was decided for it, found by one look.

To check a call and to choose for it takes longer than short attention itself. Whatever either
depends on is in the key, so nothing here can be out of date; a call that is out of the ordinary
has no key.
"""

from __future__ import annotations

import os
from collections.abc import Hashable

import torch
from torch import Tensor

from foveal.common.memo import Kept
from foveal.ops.define import is_ordinary
from foveal.ops.implementations import Implementation
from foveal.ops.work import Call, Prepared, Run, Work
from foveal.patterns import Pattern

CALLS: Kept[Prepared] = Kept(entries=1024, most_bytes=64 << 20)

# os.environ.get takes 1 us, most of it for a name that is not there
_ENVIRON = getattr(os.environ, "_data", os.environ)
_IMPL, _NATIVE = map(getattr(os.environ, "encodekey", str), ("FOVEAL_IMPL", "FOVEAL_NATIVE"))


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
    CPU, with dropout or the log-sum-exp, and wherever an argument is not what it should be.
    """
    if (
        not (type(q) is type(k) is type(v) is Tensor and q.is_cpu and k.is_cpu and v.is_cpu)
        or not isinstance(pattern, Pattern)
        or not (scale is None or (type(scale) is float and 0.0 < scale < 1e30))
        or type(dropout_p) is not float
        or dropout_p
        or return_lse is not False
        or not (impl is None or type(impl) is str)
        or not is_ordinary()
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
        torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad),
        mask,
        impl,
        torch.get_num_threads(),
        _ENVIRON.get(_IMPL),
        _ENVIRON.get(_NATIVE),
    )


def keep(key: Hashable, one: Implementation, work: Work) -> None:
    """Remember that `one` computes calls with this key."""
    CALLS.keep(key, one.prepared(work) or (_checked(one, work), None))


def _checked(one: Implementation, work: Work) -> Run:
    """What is left when a call is known to be right."""
    rest = work[1:]  # patterns that are alike now may change apart

    def run(
        q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, key_mask: Tensor | None, scale: float
    ) -> Tensor:
        return one.run(Call(Work(pattern, *rest), q, k, v, None, key_mask, scale, 0.0))[0]

    return run
