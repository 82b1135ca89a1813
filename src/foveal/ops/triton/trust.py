"""Whether the kernels are right on the device at hand; compilers for GPUs have been wrong."""

from __future__ import annotations

import functools
import warnings

import torch
from torch import Tensor

from foveal.ops.bias import WindowBias
from foveal.ops.operator import Attention
from foveal.ops.tiled_op import tiled_attend
from foveal.ops.triton.op import triton_attend
from foveal.patterns import Halo

TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""Relative root mean square of what may differ; a wrong kernel differs by about one."""


@functools.lru_cache(maxsize=256)
def trusted(
    block: tuple[int, int],
    halo: tuple[int, int],
    stride: int,
    head_dim: int,
    value_dim: int,
    dtype: torch.dtype,
    device: str,
) -> bool:
    """Whether a small problem gives the results and gradients of `tiled`, asked once a process.

    The kernels of a configuration are compiled for it, and used again for the real problem.
    """
    pattern = Halo((2 * block[0] + 1, 2 * block[1] + 1), block, halo, stride)
    try:
        wrong = _wrong(pattern, head_dim, value_dim, dtype, device)
    except Exception as error:  # whatever a compiler, a driver or a launch may raise
        wrong = f"fail ({type(error).__name__}: {str(error).strip().splitlines()[:1]})"
    if wrong:
        warnings.warn(
            f"the Triton kernels {wrong} on {device} for {pattern} in {dtype}; attend() uses "
            "impl='tiled' instead. Please report this with your versions.",
            stacklevel=2,
        )
    return not wrong


def _wrong(
    pattern: Halo, head_dim: int, value_dim: int, dtype: torch.dtype, device: str
) -> str | None:
    """What the kernels do wrong, or None."""
    keys = pattern.height * pattern.width
    queries = pattern.num_queries(keys)
    random = torch.Generator(device).manual_seed(0)

    def draw(count: int, features: int) -> Tensor:
        shape = (1, 2, count, features)
        return torch.randn(shape, generator=random, device=device).to(dtype).requires_grad_()

    with torch.inference_mode(False), torch.enable_grad():
        qkv = (draw(queries, head_dim), draw(keys, head_dim), draw(keys, value_dim))
        bias = WindowBias(*(draw(queries, side) for side in pattern.window))
        grad = draw(queries, value_dim).detach()
        ours, theirs = (
            _run(engine, qkv, bias, pattern, grad) for engine in (triton_attend, tiled_attend)
        )
    limit = TOLERANCE[dtype]
    right = all(_differ(one, other) < limit for one, other in zip(ours, theirs, strict=True))
    return None if right else "give wrong results"


# what torch.compiler.assume_constant_result does, which would import the compiler (a second)
trusted._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _run(
    engine: Attention,
    qkv: tuple[Tensor, Tensor, Tensor],
    bias: WindowBias,
    pattern: Halo,
    grad: Tensor,
) -> list[Tensor]:
    """(out, lse, gradients of q, k, v, rows, columns)"""
    q, k, v = qkv
    out, lse = engine(q, k, v, pattern, bias, None, q.shape[-1] ** -0.5, 0.0)
    given = (*qkv, *bias)
    return [out, lse, *torch.autograd.grad((out * grad).sum() + lse.sum(), given)]


def _differ(one: Tensor, other: Tensor) -> float:
    one, other = one.detach().double(), other.detach().double()
    return float((one - other).norm() / other.norm().clamp(min=1e-12))
