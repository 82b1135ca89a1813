"""attend(..., q_offset=): queries that are fewer than keys, as a call under a part of the pattern.

The part is a pattern like any other, so nothing behind this file knows of offsets. Keys that lie
outside of what the queries can read are cut off, and where the pattern allows it both places are
counted from there: then chunks at all offsets have one and the same plan.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from foveal.common.checks import as_int
from foveal.common.memo import sizes_of
from foveal.ops.bias import Bias, WindowBias
from foveal.ops.table import moves
from foveal.ops.work import Work
from foveal.patterns import Part, Pattern

LAST = -1
PLANNED = ("tiled", "native", "triton", "flex")
LARGE = 1 << 20
"""Pairs from which on a rectangle is worth a plan where nobody asks for one."""


def is_none(q_offset: Any) -> bool:
    """Whether queries are counted as ever."""
    return type(q_offset) is int and q_offset == 0


def wants_plan(work: Work, impl: str | None) -> bool:
    """Whether a call with fewer queries than the pattern has is one of a part of it."""
    if not len(work.q) == len(work.k) == 4 or work.square or (work.compiling and impl is None):
        return False  # of what has other dimensions `check_sizes` tells
    pattern, n_queries, n_keys = work.pattern, work.q[2], work.k[2]
    if impl is None and (n_queries * n_keys < LARGE or work.lse or pattern.reads_all):
        return False
    return impl in (None, *PLANNED) and bool(n_queries < pattern.num_queries(n_keys))


def resolve(pattern: Pattern, n_queries: int, n_keys: int, q_offset: Any) -> int:
    """The first query of a part, from what a user gave.

    Raises:
        ValueError: no whole number of at least -1, or more queries than the pattern has.
    """
    total = n_keys if pattern.pools else pattern.num_queries(n_keys)
    if isinstance(q_offset, Tensor):
        raise ValueError(
            "q_offset must be an int, the same for all rows, got a tensor; use .item()."
        )
    first = as_int("q_offset", q_offset)
    first = total - n_queries if first == LAST else first
    if torch.compiler.is_compiling():
        return first
    if first < 0 or first + n_queries > total:
        wrong = f"got q_offset={q_offset}, {n_queries} queries and {n_keys} keys"
        if q_offset < LAST:
            raise ValueError(f"q_offset must be an int of at least 0, or -1 = the last, {wrong}.")
        hint = f"pass at most {total} queries" if n_queries > total else "q_offset=-1: the last"
        raise ValueError(
            f"q_offset + n_queries must be at most {total}, the queries that {pattern} has, "
            f"{wrong}; {hint}."
        )
    _check_queries(pattern, first)
    return first


def _fits(bias: Tensor, full: tuple[int, ...]) -> bool:
    """Whether a bias broadcasts to the logits."""
    sizes = zip(reversed(bias.shape), reversed(full), strict=False)
    return 0 < bias.ndim <= len(full) and all(have in (1, want) for have, want in sizes)


def _check_queries(pattern: Pattern, first: int) -> None:
    if first and pattern.pools and pattern.joined(1, 1).coarse:
        raise ValueError(
            f"q_offset must be 0 for {pattern}, whose tokens share a query with those before "
            f"them, got {first}; use queries='fine'."
        )


def _strides(pattern: Pattern, n_keys: int) -> bool:
    """Whether queries are fewer than keys, so that a part of the keys tells of other queries."""
    return pattern.num_queries(n_keys) != n_keys


def part_of(
    pattern: Pattern,
    first: int,
    n_queries: int,
    n_keys: int,
    whole: bool = False,
) -> tuple[Pattern, int, int]:
    """(pattern, low, high): the queries from `first` on as a pattern over keys [low, high).

    whole: leave out no key.
    """
    if pattern.pools and not torch.compiler.is_compiling() and not first:
        return pattern, 0, n_keys  # of which queries are as many as you like
    if whole or pattern.pools or torch.compiler.is_compiling() or _strides(pattern, n_keys):
        return Part(pattern, first, n_queries), 0, n_keys
    low, high = pattern._span(first, n_queries, n_keys)
    high = high if pattern.takes_length(high) else n_keys
    return Part(pattern, first, n_queries, low), low, high


def brought_near(pattern: Pattern, bias: Bias | None) -> Pattern:
    """A part as far to the front as it and the bias stay the same, which shares its plan."""
    return pattern.near() if isinstance(pattern, Part) and moves(bias) else pattern


def applied(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    bias: Bias | None,
    key_mask: Tensor | None,
    q_offset: Any,
) -> tuple[Tensor, Tensor, Pattern, Bias | None, Tensor | None]:
    """The same call without an offset: (k, v, pattern, bias, key_mask); its kinds are checked.

    Raises:
        ValueError: see `resolve`.
    """
    if not q.ndim == k.ndim == v.ndim == 4:  # which attend says
        return k, v, pattern, bias, key_mask
    n_queries, n_keys = sizes_of(q)[2], sizes_of(k)[2]
    first = resolve(pattern, n_queries, n_keys, q_offset)
    if not torch.compiler.is_compiling():
        pattern.check_length(n_keys)
        if first == 0 and n_queries == pattern.num_queries(n_keys):
            return k, v, pattern, bias, key_mask
    # of a bias that does not fit `attend` tells, in the sizes that it was called with
    strange = isinstance(bias, Tensor) and not _fits(bias, (*q.shape[:3], n_keys))
    whole = strange or isinstance(q, FakeTensor)  # in whose mode no number can be looked at
    part, low, high = part_of(pattern, first, n_queries, n_keys, whole)
    part = brought_near(part, bias)
    if isinstance(bias, WindowBias):
        bias = bias.dense(pattern, high - low, first, low)  # type: ignore[arg-type]
    if low or high != n_keys:
        k, v = k[:, :, low:high], v[:, :, low:high]
        if isinstance(bias, Tensor) and bias.shape[-1] == n_keys > 1:
            bias = bias[..., low:high]
        key_mask = None if key_mask is None else key_mask[:, low:high]
    return k, v, part, bias, key_mask
