"""Whether a compiled kernel is right on the device at hand: compilers for GPUs have been wrong."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from foveal.ops.bias import WindowBias
from foveal.ops.operator import Attention
from foveal.ops.tiled_op import tiled_attend
from foveal.patterns import Pattern

Asked = TypeVar("Asked", bound=Callable[..., Any])

TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""Relative root mean square of what may differ; a wrong kernel differs by about one."""


def agrees(
    name: str,
    engine: Attention,
    pattern: Pattern,
    n_keys: int,
    dims: tuple[int, int],
    dtype: torch.dtype,
    device: str,
    window: tuple[int, ...] | None = None,
    reference: Attention = tiled_attend,
) -> bool:
    """Whether a small problem gives the results and gradients of `tiled`; warns where it does not.

    Args:
        name: what the warning calls the engine.
        pattern, n_keys: the problem; of pooled keys both engines get the fine tokens.
        dims: features of queries and keys, and of values.
        window: (height, width) of a WindowBias, or None.
    """
    found: list[str] = []

    def compare() -> None:
        try:
            right = _same((engine, reference), pattern, n_keys, dims, dtype, device, window)
            found.append("" if right else "gives wrong results")
        except Exception as error:  # whatever a compiler, a driver or a launch may raise
            gist = str(error).strip().splitlines()[:1]
            found.append(f"fails ({type(error).__name__}: {gist})")

    # a thread of its own knows nothing of the caller's vmap, autocast, fake tensors or devices
    thread = threading.Thread(target=compare)
    thread.start()
    thread.join()
    wrong = found[0]
    if wrong:
        warnings.warn(
            f"{name} {wrong} on {device} for {pattern} in {dtype}; attend() uses impl='tiled' "
            "instead. Please report this with your versions.",
            stacklevel=3,
        )
    return not wrong


def _same(
    engines: tuple[Attention, Attention],
    pattern: Pattern,
    n_keys: int,
    dims: tuple[int, int],
    dtype: torch.dtype,
    device: str,
    window: tuple[int, ...] | None,
) -> bool:
    queries, (head_dim, value_dim) = pattern.num_queries(n_keys), dims
    random = torch.Generator(device).manual_seed(0)

    def draw(count: int, features: int) -> Tensor:
        shape = (1, pattern.heads or 2, count, features)
        return torch.randn(shape, generator=random, device=device).to(dtype).requires_grad_()

    qkv = (draw(queries, head_dim), draw(n_keys, head_dim), draw(n_keys, value_dim))
    bias = None if window is None else WindowBias(*(draw(queries, side) for side in window))
    grad = draw(queries, value_dim).detach()
    ours, theirs = (_run(one, qkv, pattern, bias, grad) for one in engines)
    limit = TOLERANCE[dtype]
    return all(_differ(one, other) < limit for one, other in zip(ours, theirs, strict=True))


def _run(
    engine: Attention,
    qkv: tuple[Tensor, Tensor, Tensor],
    pattern: Pattern,
    bias: WindowBias | None,
    grad: Tensor,
) -> list[Tensor]:
    """[out, lse, gradients of q, k, v and of the bias]"""
    q, k, v = qkv
    out, lse = engine(q, k, v, pattern, bias, None, q.shape[-1] ** -0.5, 0.0)
    lse = lse.masked_fill(lse == -torch.inf, 0.0)  # queries without keys
    given = (*qkv, *(bias or ()))
    return [out, lse, *torch.autograd.grad((out * grad).sum() + lse.sum(), given)]


def _differ(one: Tensor, other: Tensor) -> float:
    one, other = one.detach().double(), other.detach().double()
    return float((one - other).norm() / other.norm().clamp(min=1e-12))


def ask_once(question: Asked) -> Asked:
    """Decorator: the compiler takes the answer as a constant and does not trace the question."""
    # what torch.compiler.assume_constant_result does, which would import the compiler (a second)
    question._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return question
