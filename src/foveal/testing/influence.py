"""Which inputs move which outputs: the test that finds leaks and lost pairs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from foveal.patterns.base import Pattern

SequenceFn = Callable[[Tensor], Tensor]
METHODS = ("gradient", "perturbation")
MOVED = 1e-9
"""Change, relative to the outputs, above which a perturbed input counts as having moved them."""
_AT_ONCE = 64  # outputs whose gradients are held together


def reach(
    fn: SequenceFn | Pattern,
    length: int,
    *,
    dim: int = 8,
    method: str = "gradient",
    repeats: int = 2,
    seed: int = 0,
    impl: str | None = None,
) -> Tensor:
    """Which inputs move which outputs.

    Args:
        fn: maps (1, length, dim) to (1, length_out, dim_out), both float64, one token a position;
            dropout off. A pattern stands for attention by it, in which the queries do not depend
            on the input, so that the result is to be `pattern.mask(length)` (any head).
        length: number of input tokens.
        dim: channels of the input.
        method: "gradient" (exact zeros mean no influence) or "perturbation" (replaces one token at
            a time; for functions without gradients).
        repeats: inputs drawn; influence on any of them counts, so that an accidental zero (a ReLU
            that is off, say) does not hide a path.
        seed: of the draws.
        impl: for a pattern, the implementation of `attend`.

    Returns:
        bool (length_out, length): True where the input token influences the output token.

    Raises:
        ValueError: the method is unknown, outputs have a wrong shape, are not finite, or carry no
            gradient.

    >>> reach(lambda x: x.cumsum(1), 3).int().tolist()
    [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method=}.")
    if isinstance(fn, Pattern):
        fn, dim = attention_fn(fn, length, impl=impl, seed=seed), 2 * _VALUE
    look = _by_gradient if method == "gradient" else _by_perturbation
    generator = torch.Generator().manual_seed(seed)
    found = None
    for _ in range(repeats):
        x = torch.randn(1, length, dim, dtype=torch.float64, generator=generator, device="cpu")
        moved = look(fn, x, generator)
        found = moved if found is None else found | moved
    if found is None:
        raise ValueError(f"repeats must be at least 1, got {repeats=}.")
    return found


def assert_causal(fn: SequenceFn | Pattern, length: int, **options: object) -> None:
    """Check that no output moves with a later input. Options are those of `reach`.

    Raises:
        AssertionError: naming the first output that sees the future.
    """
    found = reach(fn, length, **options)  # type: ignore[arg-type]
    leaks = found.triu(1).nonzero()
    if len(leaks):
        i, j = leaks[0].tolist()
        raise AssertionError(
            f"not causal: output {i} moves with input {j} ({len(leaks)} such pairs of {length}^2)"
        )


def assert_reaches(fn: SequenceFn | Pattern, mask: Tensor, **options: object) -> None:
    """Check that exactly the pairs of `mask` influence: no leak, no pair lost.

    Args:
        fn: as for `reach`.
        mask: (length_out, length) bool, True where the input must influence the output.
        options: those of `reach`.

    Raises:
        AssertionError: with the number of leaks and lost pairs and the first of each.
    """
    found = reach(fn, mask.shape[1], **options)  # type: ignore[arg-type]
    if found.shape != mask.shape:
        raise AssertionError(f"reach has shape {tuple(found.shape)}, the mask {tuple(mask.shape)}")
    problems = []
    for what, wrong in (("leaked", found & ~mask), ("lost", mask & ~found)):
        if bool(wrong.any()):
            i, j = wrong.nonzero()[0].tolist()
            problems.append(f"{int(wrong.sum())} pairs {what}, first output {i}, input {j}")
    if problems:
        raise AssertionError("; ".join(problems))


# -- how influence is found ---------------------------------------------------------------------


def _by_gradient(fn: SequenceFn, x: Tensor, generator: torch.Generator) -> Tensor:
    x = x.requires_grad_()
    with torch.enable_grad():
        out = _checked(fn(x))
        if not out.requires_grad:
            raise ValueError("fn's output carries no gradient; use method='perturbation'.")
        weights = torch.randn(out.shape[1:], dtype=out.dtype, generator=generator, device="cpu")
        sums = (out[0] * weights.to(out.device)).sum(-1)
        rows = [_gradients(some, x) for some in sums.split(_AT_ONCE) if len(some)]
    return torch.cat(rows) if rows else torch.zeros(0, x.shape[1], dtype=torch.bool, device="cpu")


def _gradients(totals: Tensor, x: Tensor) -> Tensor:
    """Input tokens on which each of some numbers depends: (numbers, length) bool."""
    try:
        found = _in_one_pass(totals, x)
    except RuntimeError:  # some operation knows no gradients of many outputs
        grads = [
            torch.autograd.grad(one, x, retain_graph=True, allow_unused=True)[0] for one in totals
        ]
        found = torch.stack([torch.zeros_like(x) if grad is None else grad for grad in grads])
    if not bool(found.isfinite().all()):
        raise ValueError("fn must have finite gradients, got infinity or NaN.")
    return (found[:, 0] != 0).any(-1)


def _in_one_pass(totals: Tensor, x: Tensor) -> Tensor:
    """The gradient of each of some numbers (numbers, *x.shape)."""
    each = torch.eye(len(totals), dtype=totals.dtype, device=totals.device)
    options: dict[str, Any] = {"retain_graph": True, "allow_unused": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what goes one by one
        (found,) = torch.autograd.grad(totals, x, each, is_grads_batched=True, **options)
    return x.new_zeros(len(totals), *x.shape) if found is None else found


@torch.no_grad()
def _by_perturbation(fn: SequenceFn, x: Tensor, generator: torch.Generator) -> Tensor:
    base = _checked(fn(x))
    size = base.abs().amax().clamp(min=1e-300) if base.numel() else 1.0
    columns = []
    for j in range(x.shape[1]):
        moved = x.clone()
        moved[0, j] = torch.randn(x.shape[2], dtype=x.dtype, generator=generator, device="cpu")
        change = (_checked(fn(moved)) - base)[0].abs().flatten(1).amax(-1)
        columns.append(change > MOVED * size)
    return (
        torch.stack(columns, 1)
        if columns
        else torch.zeros(base.shape[1], 0, dtype=torch.bool, device="cpu")
    )


def _checked(out: Tensor) -> Tensor:
    if out.dim() != 3 or out.shape[0] != 1:
        raise ValueError(f"fn must return (1, length_out, dim_out), got {tuple(out.shape)}.")
    if not bool(out.isfinite().all()):
        raise ValueError("fn must return finite values, got infinity or NaN.")
    return out


# -- attention by a pattern as such a function --------------------------------------------------

_VALUE = 4  # channels of a head


def attention_fn(
    pattern: Pattern, length: int, *, impl: str | None = None, seed: int = 0
) -> SequenceFn:
    """Attention by a pattern as a function for `reach`: (1, length, 8) -> (1, length, 4 * heads).

    Keys and values are halves of the input; queries are fixed, for a query that depended on its
    own token would show an influence which the pattern does not allow.
    """
    from foveal.ops import attend

    heads = pattern.heads or 1
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(
        1, heads, length, _VALUE, dtype=torch.float64, generator=generator, device="cpu"
    )

    def fn(x: Tensor) -> Tensor:
        k, v = (part[:, None].expand(-1, heads, -1, -1) for part in x.split(_VALUE, dim=-1))
        out = attend(q.to(x.device), k, v, pattern, impl=impl)
        if not isinstance(out, Tensor):
            raise TypeError(f"attend must return a tensor, got {type(out).__name__}.")
        return out.transpose(1, 2).flatten(2)

    return fn
