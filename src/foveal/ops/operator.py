"""An engine as one opaque operator for autograd, torch.compile, export and autocast."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from foveal.common import by_example
from foveal.ops.bias import WindowBias
from foveal.ops.define import (
    define,
    in_mode_of,
    is_differentiated,
    is_plain,
    is_stray,
    is_transformed,
    one_at_a_time,
)
from foveal.ops.drop import ByPlace
from foveal.ops.formula import attend_plainly, plain_gradients
from foveal.ops.logits import with_sinks
from foveal.ops.spec import describe, is_ticket, is_tracing, lend, rebuild, take_back
from foveal.patterns import Pattern

OPERATORS: list[str] = []
"""Names of the engines that are registered."""


class Operands(NamedTuple):
    """One call of an engine; shapes as in `attend`, the parts of a WindowBias one by one."""

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None  # 4 dimensions
    rows: Tensor | None
    columns: Tensor | None
    sinks: Tensor | None
    key_mask: Tensor | None
    seed: Tensor | None  # (), one for each example (batch, 1), or what a ByPlace says
    pattern: Pattern
    scale: float
    dropout_p: float
    softcap: float = 0.0  # 0: none
    need_lse: bool = True  # False: lse may hold anything but -inf for a query that has keys

    @property
    def given(self) -> list[Tensor]:
        """The tensors that may need a gradient, in order."""
        return [x for x in self[:7] if x is not None]

    @property
    def accumulation(self) -> torch.dtype:
        """The precision of the arithmetic and of the log-sum-exp."""
        return torch.float64 if self.q.dtype == torch.float64 else torch.float32


Forward = Callable[[Operands], tuple[Tensor, Tensor]]
"""operands -> out (batch, heads, n_queries, head_dim_v), laid out by `new_output`, and lse."""

Backward = Callable[[Operands, Tensor, Tensor, Tensor, Tensor], list[Tensor]]
"""operands, out, lse, grad_out, grad_lse -> gradients of `operands.given`."""


class Attention(Protocol):
    """An engine: arguments as in `attend`, (out, lse) back; `need_lse` as in `Operands`."""

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        pattern: Pattern,
        bias: Tensor | WindowBias | None,
        key_mask: Tensor | None,
        scale: float,
        dropout_p: float,
        need_lse: bool = True,
        sinks: Tensor | None = None,
        softcap: float | None = None,
    ) -> tuple[Tensor, Tensor]: ...


def new_output(q: Tensor, dim: int) -> Tensor:
    """An empty (batch, heads, n_queries, dim) whose heads lie side by side in memory.

    Projections then read it without a copy; gradients of q, k and v have this form too.
    """
    batch, heads, length, _ = q.shape
    strides = (length * heads * dim, dim, heads * dim, 1)
    return q.new_empty_strided((batch, heads, length, dim), strides)


def unit_stride(x: Tensor) -> Tensor:
    """x, copied unless the features of a row lie side by side in memory."""
    return x if x.stride(-1) == 1 else x.contiguous()


def attention_operator(
    name: str, forward: Forward, backward: Backward, takes_sinks: bool = False
) -> Attention:
    """Register ``foveal::<name>_forward`` and ``_backward``; returns the differentiable call.

    The call is an `Attention`. An engine that does not take sinks gets none: they are added to
    its results.
    """

    def run_forward(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        rows: Tensor | None,
        columns: Tensor | None,
        sinks: Tensor | None,
        key_mask: Tensor | None,
        seed: Tensor | None,
        pattern: str,
        sizes: list[int],
        scale: float,
        dropout_p: float,
        softcap: float,
        need_lse: bool,
    ) -> tuple[Tensor, Tensor]:
        tensors = (q, k, v, bias, rows, columns, sinks, key_mask, seed)
        options = (scale, dropout_p, softcap, need_lse)
        return forward(Operands(*tensors, rebuild(pattern, sizes), *options))

    def fake_forward(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
        return new_output(q, v.shape[-1]), q.new_empty(q.shape[:-1], dtype=dtype)

    OPERATORS.append(name)
    forward_op = define(f"{name}_forward", run_forward, fake_forward)

    def run_backward(
        grad_out: Tensor,
        grad_lse: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        rows: Tensor | None,
        columns: Tensor | None,
        sinks: Tensor | None,
        key_mask: Tensor | None,
        seed: Tensor | None,
        out: Tensor,
        lse: Tensor,
        pattern: str,
        sizes: list[int],
        scale: float,
        dropout_p: float,
        softcap: float,
    ) -> list[Tensor]:
        tensors = (q, k, v, bias, rows, columns, sinks, key_mask, seed)
        operands = Operands(*tensors, rebuild(pattern, sizes), scale, dropout_p, softcap)
        return backward(operands, out, lse, grad_out, grad_lse)

    def fake_backward(grad_out: Tensor, grad_lse: Tensor, *rest: Any) -> list[Tensor]:
        bias, sinks = rest[3], rest[6]  # the others have heads and features
        return [
            x.new_empty(x.shape) if x is bias or x is sinks else new_output(x, x.shape[-1])
            for x in rest[:7]
            if x is not None
        ]

    backward_op = define(f"{name}_backward", run_backward, fake_backward)

    def setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
        *tensors, pattern, sizes, scale, dropout_p, softcap, _ = inputs
        ctx.save_for_backward(*tensors, *output)
        ctx.pattern = _passed(pattern, sizes)
        ctx.key = _key_of(ctx.pattern)
        ctx.options = (scale, dropout_p, softcap)

    @one_at_a_time
    def gradients(ctx, grad_out, grad_lse):  # type: ignore[no-untyped-def]
        if ctx.key != _key_of(ctx.pattern):
            raise RuntimeError(
                "what the gradient needs has been modified by an inplace operation: "
                f"{type(ctx.pattern).__name__} is another pattern than in the forward pass."
            )
        saved = ctx.saved_tensors  # read once: activation checkpointing computes them when asked
        tensors = (grad_out, grad_lse, *saved)
        if is_differentiated(*tensors):
            operands = Operands(*saved[:9], _unpassed(ctx.pattern), *ctx.options)
            found = plain_gradients(operands, grad_out, grad_lse, ctx.needs_input_grad[:7])
            return (*found, *(None,) * 8)
        if isinstance(ctx.pattern, Pattern) and is_plain(*tensors):
            operands = Operands(*saved[:9], ctx.pattern, *ctx.options)
            grads = iter(backward(operands, *saved[9:], grad_out, grad_lse))
        elif is_stray(saved[0]):  # autograd's own zeros are real
            with in_mode_of(saved[0]):
                grads = iter(_with_pattern(backward_op, ctx.pattern, tensors, ctx.options))
        else:
            grads = iter(_with_pattern(backward_op, ctx.pattern, tensors, ctx.options))
        return (*(None if x is None else next(grads) for x in saved[:7]), *(None,) * 8)

    torch.library.register_autograd(
        f"foveal::{name}_forward", gradients, setup_context=setup_context
    )

    def eager_forward(ctx, *inputs):  # type: ignore[no-untyped-def]
        *tensors, pattern, scale, dropout_p, softcap, _ = inputs
        out, lse = forward(Operands(*inputs))
        ctx.save_for_backward(*tensors, out, lse)
        ctx.key = _key_of(pattern)
        ctx.pattern, ctx.options = pattern, (scale, dropout_p, softcap)
        return out, lse

    def eager_backward(ctx, grad_out, grad_lse):  # type: ignore[no-untyped-def]
        return gradients(ctx, grad_out, grad_lse)[:-1]

    eager: Any = type(
        name,
        (torch.autograd.Function,),
        {"forward": staticmethod(eager_forward), "backward": staticmethod(eager_backward)},
    )

    def call(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        pattern: Pattern,
        bias: Tensor | WindowBias | None,
        key_mask: Tensor | None,
        scale: float,
        dropout_p: float,
        need_lse: bool = True,
        sinks: Tensor | None = None,
        softcap: float | None = None,
    ) -> tuple[Tensor, Tensor]:
        if sinks is not None and not takes_sinks:
            options = (bias, key_mask, scale, dropout_p, True, None, softcap)
            return with_sinks(*call(q, k, v, pattern, *options), sinks)
        seed = by_example.seed() if dropout_p else None
        if isinstance(dropout_p, ByPlace) and dropout_p.seed is not None:
            if name != "tiled":
                raise ValueError(f"impl={name!r} cannot drop by place; use impl='tiled'.")
            seed = dropout_p.words(q.shape[0])
        rows, columns = bias if isinstance(bias, WindowBias) else (None, None)
        dense = None if isinstance(bias, WindowBias) else bias
        tensors = (q, k, v, dense, rows, columns, sinks, key_mask, seed)
        numbers = (scale, float(dropout_p), softcap or 0.0, need_lse)
        if is_plain(*tensors):
            operands = Operands(*tensors, pattern, *numbers)
            if torch.is_grad_enabled() and any(x.requires_grad for x in operands.given):
                return eager.apply(*operands)
            return forward(operands)
        if is_transformed(*tensors):
            return attend_plainly(Operands(*tensors, pattern, *numbers))
        return _with_pattern(forward_op, pattern, tensors, numbers)

    return call


Passed = Pattern | tuple[str, list[int]]
"""A pattern as a context keeps it: the object of an eager call, the description of a graph's."""


def _passed(text: str, sizes: list[int]) -> Passed:
    return rebuild(text, sizes) if is_ticket(text) else (text, sizes)


def _unpassed(pattern: Passed) -> Pattern:
    return rebuild(*pattern) if isinstance(pattern, tuple) else pattern


def _key_of(pattern: Passed) -> Hashable:
    """The key of a pattern that can be changed in place, as a tensor can; None of others."""
    if isinstance(pattern, tuple) or pattern.has_fixed_key():
        return None
    return pattern.cache_key()


def _with_pattern(
    op: Any, pattern: Passed, tensors: tuple[Tensor | None, ...], options: tuple[Any, ...]
) -> Any:
    """Call an operator, with the pattern as text and sizes between tensors and options."""
    if isinstance(pattern, tuple):
        return op(*tensors, *pattern, *options)
    if is_tracing():
        return op(*tensors, *describe(pattern), *options)
    ticket = lend(pattern)
    try:
        return op(*tensors, ticket, [], *options)
    finally:
        take_back(ticket)
