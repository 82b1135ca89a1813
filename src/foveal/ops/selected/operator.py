"""The engines of attend_selected as opaque operators for autograd, torch.compile and export."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from foveal.ops.define import (
    define,
    is_differentiated,
    is_plain,
    is_transformed,
    one_at_a_time,
)
from foveal.ops.formula import gradients_again
from foveal.ops.operator import new_output
from foveal.ops.selected import native, tiled
from foveal.ops.selected.operands import Operands

OPERATORS: list[str] = []
"""Names of the engines that are registered."""

Engine = Callable[[Operands], tuple[Tensor, Tensor]]
"""operands -> out (batch, heads, n_queries, head_dim_v) and lse (batch, heads, n_queries)."""


def _selected_operator(
    name: str, forward: Engine, backward: Callable[..., list[Tensor]]
) -> Engine:
    """Register ``foveal::<name>_forward`` and ``_backward``; returns the differentiable call."""

    def run_forward(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        blocks: Tensor,
        key_mask: Tensor | None,
        block_size: int,
        query_block: int,
        causal: bool,
        first: int,
        scale: float,
        softcap: float,
    ) -> tuple[Tensor, Tensor]:
        options = (block_size, query_block, causal, first, scale, softcap)
        return forward(Operands(q, k, v, blocks, key_mask, *options))

    def fake_forward(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
        return new_output(q, v.shape[-1]), q.new_empty(q.shape[:-1], dtype=dtype)

    def run_backward(
        grad_out: Tensor,
        grad_lse: Tensor,
        out: Tensor,
        lse: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        blocks: Tensor,
        key_mask: Tensor | None,
        block_size: int,
        query_block: int,
        causal: bool,
        first: int,
        scale: float,
        softcap: float,
    ) -> list[Tensor]:
        options = (block_size, query_block, causal, first, scale, softcap)
        operands = Operands(q, k, v, blocks, key_mask, *options)
        return backward(operands, out, lse, grad_out, grad_lse)

    def fake_backward(*args: Any) -> list[Tensor]:
        return [new_output(x, x.shape[-1]) for x in args[4:7]]

    OPERATORS.append(name)
    forward_op = define(f"{name}_forward", run_forward, fake_forward)
    backward_op = define(f"{name}_backward", run_backward, fake_backward)

    def setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(*output, *inputs[:5])
        ctx.options = tuple(inputs[5:])

    @one_at_a_time
    def gradients(ctx, grad_out, grad_lse):  # type: ignore[no-untyped-def]
        out, lse, *tensors = ctx.saved_tensors
        operands = Operands(*tensors, *ctx.options)
        if is_differentiated(grad_out, grad_lse, *tensors):
            needed = ctx.needs_input_grad[:3]
            found = gradients_again(tiled.attend_plainly, operands, (grad_out, grad_lse), needed)
        elif is_plain(grad_out, grad_lse, *tensors):
            found = backward(operands, out, lse, grad_out, grad_lse)
        else:
            found = backward_op(grad_out, grad_lse, out, lse, *operands)
        return (*found, *(None,) * 8)

    torch.library.register_autograd(
        f"foveal::{name}_forward", gradients, setup_context=setup_context
    )

    def eager_forward(ctx, *inputs):  # type: ignore[no-untyped-def]
        found = forward(Operands(*inputs))
        setup_context(ctx, inputs, found)
        return found

    eager: Any = type(
        name,
        (torch.autograd.Function,),
        {"forward": staticmethod(eager_forward), "backward": staticmethod(gradients)},
    )

    def call(operands: Operands) -> tuple[Tensor, Tensor]:
        tensors = operands[:5]
        if is_plain(*tensors):
            if torch.is_grad_enabled() and any(x.requires_grad for x in operands[:3]):
                return eager.apply(*operands)
            return forward(operands)
        if is_transformed(*tensors):
            operands.check_blocks()
            return tiled.attend_plainly(operands)
        return forward_op(*operands)

    return call


selected_tiled = _selected_operator("selected_tiled", tiled.forward, tiled.backward)
selected_native = _selected_operator("selected_native", native.forward, native.backward)
