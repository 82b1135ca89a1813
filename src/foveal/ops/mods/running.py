"""Running a mod of FlexAttention, which is written for one pair, over many pairs at once.

A mod gets scalars: the batch, the head, the query and the key, and a `score_mod` the score. Under
nested torch.vmap it runs over all pairs of some tiles, and stays broadcast as far as it can: what
depends on the head alone is computed once a head.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from foveal.common.words import shorten

Mod = Callable[..., Any]

_LIKE = (torch.zeros_like, torch.ones_like, torch.full_like, torch.empty_like)
_NEW = (Tensor.new_zeros, Tensor.new_ones, Tensor.new_full, Tensor.new_empty, Tensor.new_tensor)
_INT = (torch.int64, torch.int32, torch.int16, torch.int8)


class Watch(TorchFunctionMode):
    """What a mod asks of torch passes through here.

    Scalars index tensors without being read, and whatever needs a gradient is noted: closures,
    globals, modules and whatever else can hold a tensor are found alike.

    Args:
        instead: tensors of the same shapes that take the place of others, by their id: so that a
            gradient ends where the mod begins.

    Attributes:
        noted: captured tensors that need a gradient, in the order in which they were met, while
            gradients are switched off: then nothing made inside needs one.
    """

    def __init__(self, instead: dict[int, Tensor] | None = None) -> None:
        super().__init__()
        self.noted: dict[int, Tensor] = {}
        self._instead = instead or {}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        args = tuple([self._seen(one) for one in args])
        kwargs = {name: self._seen(one) for name, one in (kwargs or {}).items()}
        if func is Tensor.__getitem__:
            return _pick(*args)
        if func in _NEW or func in _LIKE:  # their values do not depend on this scalar
            args = (_plain(args[0]), *args[1:])
        return func(*args, **kwargs)

    def _seen(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            if value.requires_grad and not torch.is_grad_enabled():
                self.noted.setdefault(id(value), value)
            return self._instead.get(id(value), value)
        if type(value) in (tuple, list):
            return type(value)([self._seen(one) for one in value])
        return value


def _plain(x: Any) -> Any:
    """A scalar of the same kind that is no batch of scalars."""
    if not isinstance(x, Tensor) or x.ndim or x.requires_grad:
        return x
    return torch.zeros((), dtype=x.dtype, device=x.device)


def _pick(x: Tensor, index: Any) -> Tensor:
    """x[index], where scalar tensors are positions that nobody reads."""
    parts = index if isinstance(index, tuple) else (index,)
    scalars = [_is_position(one) for one in parts]
    if not any(scalars):
        return x[index]
    if all(isinstance(one, Tensor) for one in parts):
        return torch.ops.aten.index(x, list(parts))
    return _pick_mixed(x, parts)


def _is_position(one: Any) -> bool:
    return isinstance(one, Tensor) and one.ndim == 0 and one.dtype in _INT


def _pick_mixed(x: Tensor, parts: tuple[Any, ...]) -> Tensor:
    """Positions beside slices, numbers and the like: a dimension at a time, from the last."""
    named = sum(one is not None and one is not Ellipsis for one in parts)
    whole = (slice(None),) * (x.ndim - named)
    if Ellipsis in [one if one is Ellipsis else None for one in parts]:
        at = next(i for i, one in enumerate(parts) if one is Ellipsis)
        parts = (*parts[:at], *whole, *parts[at + 1 :])
    rest = tuple([slice(None) if _is_position(one) else one for one in parts])
    # every position keeps its dimension until all else is done, then it goes
    x = x[rest]
    dim, found = 0, []
    for one in parts:
        if _is_position(one):
            found.append((dim, one))
        dim += not (isinstance(one, int) and not isinstance(one, bool))
    for dim, one in reversed(found):
        x = torch.ops.aten.index(x, [*(None,) * dim, one])
    return x


# -- over pairs ---------------------------------------------------------------------------------


def scores_of(
    mod: Mod, score: Tensor, batch: Tensor, heads: Tensor, queries: Tensor, keys: Tensor
) -> Tensor:
    """What a score_mod makes of scores.

    Args:
        score: (b, h, t, q, k).
        batch, heads: (b,) and (h,) numbers.
        queries, keys: (t, q) and (t, k) positions.
    """
    run = _one_number("score_mod", mod)
    for dims in ((0, None, None, None, 0), (0, None, None, 0, None), (0, None, None, 0, 0)):
        run = torch.vmap(run, in_dims=dims)
    run = torch.vmap(run, in_dims=(0, None, 0, None, None))
    run = torch.vmap(run, in_dims=(0, 0, None, None, None))
    with in_words("score_mod"):
        return run(score, batch, heads, queries, keys)


def mask_of(mod: Mod, batch: Tensor, heads: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """What a mask_mod says of tiles: (t, q, k) bool.

    Args:
        batch, heads: (t,) numbers.
        queries, keys: (t, q) and (t, k) positions.
    """
    run = _one_number("mask_mod", mod)
    for dims in ((None, None, None, 0), (None, None, 0, None), (0, 0, 0, 0)):
        run = torch.vmap(run, in_dims=dims)
    with torch.no_grad(), Watch(), in_words("mask_mod"):
        return run(batch, heads, queries, keys)


def depends(
    mod: Mod, batch: Tensor, heads: Tensor, at: tuple[Tensor, Tensor]
) -> tuple[bool, bool]:
    """Whether a mask_mod says something else for another batch, and for another head.

    What is the same for all of them stays broadcast, and its stride is zero.

    Args:
        batch, heads: (b,) and (h,) numbers that are in question.
        at: one query and one key, ().
    """
    run = _one_number("mask_mod", mod)
    run = torch.vmap(run, in_dims=(None, 0, None, None))
    run = torch.vmap(run, in_dims=(0, None, None, None))
    with torch.no_grad(), Watch(), in_words("mask_mod"):
        found = run(batch, heads, *at)
    return found.stride(0) != 0, found.stride(1) != 0


def _one_number(name: str, mod: Mod) -> Mod:
    """The mod, made to return what it must."""

    def run(*args: Tensor) -> Tensor:
        found = mod(*args)
        if not isinstance(found, Tensor):
            raise TypeError(
                f"{name} must return a tensor for each pair, got {type(found).__name__} "
                f"{shorten(repr(found), 40)}; compute it from its arguments, such as "
                "q_idx >= kv_idx."
            )
        if found.ndim:
            raise ValueError(
                f"{name} must return one number for one pair, got shape {tuple(found.shape)}; its "
                "arguments are scalars, and what it captures is indexed by them."
            )
        _check_kind(name, found.dtype)
        return found

    return run


def _check_kind(name: str, dtype: torch.dtype) -> None:
    if name == "mask_mod" and dtype != torch.bool:
        raise TypeError(
            f"mask_mod must return a bool, True where the pair attends, got {dtype}; compare, or "
            "hand a function that changes scores to score_mod."
        )
    if name == "score_mod" and (dtype == torch.bool or dtype.is_complex):
        hint = " (a mask belongs into a BlockMask)" if dtype == torch.bool else ""
        raise TypeError(f"score_mod must return the new score, got {dtype}{hint}.")


_TROUBLES = (
    ("data-dependent control flow", "must not branch on its arguments; use torch.where"),
    (".item() on a Tensor", "must not read its arguments as Python numbers; keep them tensors"),
    (
        "random operation",
        "must not draw random numbers, which its gradient would draw anew; capture a tensor that "
        "was drawn before",
    ),
)


@contextlib.contextmanager
def in_words(name: str) -> Iterator[None]:
    """What torch.vmap says of a mod, for somebody who has not called it."""
    try:
        yield
    except RuntimeError as error:
        text = " ".join(str(error).split())
        for part, advice in _TROUBLES:
            if part in text:
                raise ValueError(f"{name} {advice} (torch says: {text:.120}...).") from error
        raise
