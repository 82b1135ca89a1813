"""Whether calls are lowered, and what is known of sizes that are symbols."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Hashable, Iterator
from typing import Any, TypeVar, cast

import torch

from foveal.patterns import Pattern

Result = TypeVar("Result")

_PLANS: contextvars.ContextVar[dict[Hashable, Any] | None] = contextvars.ContextVar(
    "foveal_lowering", default=None
)


class NotLoweredError(NotImplementedError):
    """A call that has no form in plain operators; the message says which."""


@contextlib.contextmanager
def lowering() -> Iterator[None]:
    """Within, torch.export traces `attend`, and what is made of it, as plain operators.

    Other operators of foveal stay in the graph: attention to selected blocks, packed sequences.
    """
    import torch.fx.experimental._config as symbols

    token = _PLANS.set({})
    try:
        # sizes of one are not told from others, so that one trace serves them too
        with symbols.patch(backed_size_oblivious=True):
            yield
    finally:
        _PLANS.reset(token)


def is_lowering() -> bool:
    """Whether a call that is made now is to be lowered."""
    return torch.compiler.is_exporting() and _PLANS.get() is not None


# the compiler takes the answer as a constant: that of torch 2.11 cannot trace the question
is_lowering._dynamo_marked_constant = True  # type: ignore[attr-defined]


def planned(key: Hashable, make: Callable[[], Result]) -> Result:
    """What `make` gives outside of the trace: real tensors, one and the same for equal keys."""
    plans = _PLANS.get()
    if plans is not None and key in plans:
        return plans[key]
    from torch.utils._python_dispatch import _disable_current_modes

    with _disable_current_modes(), torch.no_grad():
        found = make()
    if plans is not None:
        plans[key] = found
    return found


def most(size: int | torch.SymInt) -> int | None:
    """The largest value of a size; None where a symbol is not bounded."""
    if not isinstance(size, torch.SymInt):
        return size
    from torch.utils._sympy.numbers import int_oo

    upper = size.node.shape_env.bound_sympy(size.node.expr).upper
    return None if upper in (int_oo, None) or not upper.is_finite else int(upper)


def least(size: int | torch.SymInt) -> int:
    """The smallest value of a size."""
    if not isinstance(size, torch.SymInt):
        return size
    lower = size.node.shape_env.bound_sympy(size.node.expr).lower
    return max(0, int(lower)) if lower.is_finite else 0


def are_equal(one: int | torch.SymInt, other: int | torch.SymInt) -> bool:
    """Whether sizes are the same for every value of their symbols; ties the trace to nothing."""
    if isinstance(one, int) and isinstance(other, int):
        return one == other
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return bool(statically_known_true(one == other))


def has_symbols(value: Any) -> bool:
    """Whether a pattern holds sizes that are symbols."""
    if isinstance(value, tuple):
        return any(has_symbols(one) for one in value)
    if isinstance(value, Pattern):
        return any(has_symbols(one) for one in vars(value).values())
    return isinstance(value, torch.SymInt)


def without_choice(examples: int | torch.SymInt) -> contextlib.AbstractContextManager[None]:
    """For a call of SDPA, which stays whole in the graph and chooses its kernel when it runs.

    torch 2.11 chooses within the trace too, and asks whether there is one example or more: a range
    of lengths that has both would be refused.
    """
    if not isinstance(examples, torch.SymInt) or torch.compiler.is_dynamo_compiling():
        return contextlib.nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return cast(contextlib.AbstractContextManager[None], sdpa_kernel(SDPBackend.MATH))
