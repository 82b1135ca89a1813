"""What torch.utils.flop_counter.FlopCounterMode counts for attention: the pairs of its pattern.

Loaded as soon as that module is. A multiply-add counts as two, a forward pass has two products a
pair and a backward pass five (scores are computed again), as torch has it. What is computed by
scaled_dot_product_attention counts as torch counts it: all pairs, whatever its mask.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import flop_counter

from foveal.ops.operator import OPERATORS
from foveal.ops.selected import operator as selected
from foveal.ops.spec import rebuild

Shape = tuple[int, ...]


def pairs_of(q: Shape, k: Shape, pattern: str, sizes: list[int]) -> int:
    """Pairs that the pattern of an operator allows, of all heads and samples."""
    return q[0] * q[1] * rebuild(pattern, sizes).num_pairs(k[2])


def forward(q: Shape, k: Shape, v: Shape, *rest: Any, out_shape: Any = None) -> int:
    """Operations of ``foveal::<name>_forward``; tensors come as their shapes."""
    pattern, sizes = rest[6:8]
    return 2 * pairs_of(q, k, pattern, sizes) * (q[3] + v[3])


def backward(
    grad_out: Shape, grad_lse: Shape, q: Shape, k: Shape, v: Shape, *rest: Any, out_shape: Any
) -> int:
    """Operations of ``foveal::<name>_backward``: scores, and gradients of weights, q, k and v."""
    pattern, sizes = rest[8:10]
    return 2 * pairs_of(q, k, pattern, sizes) * (3 * q[3] + 2 * v[3])


def selected_forward(
    q: Shape, k: Shape, v: Shape, blocks: Shape, *rest: Any, out_shape: Any = None
) -> int:
    """Operations of ``foveal::selected_<name>_forward``; see `selected_pairs`."""
    return 2 * selected_pairs(q, k, blocks, rest[1]) * (q[3] + v[3])


def selected_backward(*given: Any, out_shape: Any = None) -> int:
    """Operations of ``foveal::selected_<name>_backward``; see `selected_pairs`."""
    q, k, v, blocks, _, size = given[4:10]
    return 2 * selected_pairs(q, k, blocks, size) * (3 * q[3] + 2 * v[3])


def selected_pairs(q: Shape, k: Shape, blocks: Shape, size: int) -> int:
    """The most pairs that there may be: which blocks are named, shapes do not say."""
    return q[0] * q[1] * q[2] * min(blocks[3] * size, k[2])


def _sdpa(q: Shape, k: Shape, v: Shape, *rest: Any, out_shape: Any = None, **options: Any) -> int:
    # torch's own count knows grouped heads since 2.13 only
    return 2 * q[0] * q[1] * q[2] * k[2] * (q[3] + v[3])


def _sdpa_backward(
    grad_out: Shape,
    q: Shape,
    k: Shape,
    v: Shape,
    *rest: Any,
    out_shape: Any = None,
    **options: Any,
) -> int:
    return 2 * q[0] * q[1] * q[2] * k[2] * (3 * q[3] + 2 * v[3])


def _register() -> None:
    formulas: dict[Any, Any] = {}
    for name in OPERATORS:
        formulas[getattr(torch.ops.foveal, f"{name}_forward")] = forward
        formulas[getattr(torch.ops.foveal, f"{name}_backward")] = backward
    for name in selected.OPERATORS:
        formulas[getattr(torch.ops.foveal, f"{name}_forward")] = selected_forward
        formulas[getattr(torch.ops.foveal, f"{name}_backward")] = selected_backward
    # torch 2.13 forgets its kernel for the CPU, for which it counts nothing
    aten = torch.ops.aten
    formulas[aten._scaled_dot_product_flash_attention_for_cpu] = _sdpa
    formulas[aten._scaled_dot_product_flash_attention_for_cpu_backward] = _sdpa_backward
    for packet, formula in formulas.items():
        if packet not in flop_counter.flop_registry:
            flop_counter.register_flop_formula(packet)(formula)


_register()
