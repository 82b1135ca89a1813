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
    size = (2 * block[0] + 1, 2 * block[1] + 1)
    pattern = Halo(size, block, halo, stride)
    queries, keys = pattern.num_queries(size[0] * size[1]), size[0] * size[1]
    random = torch.Generator(device).manual_seed(0)

    def draw(count: int, features: int) -> Tensor:
        shape = (1, 2, count, features)
        return torch.randn(shape, generator=random, device=device).to(dtype).requires_grad_()

    with torch.inference_mode(False), torch.enable_grad():
        qkv = (draw(queries, head_dim), draw(keys, head_dim), draw(keys, value_dim))
        bias = WindowBias(*(draw(queries, side) for side in pattern.window))
        grad = draw(queries, value_dim).detach()
        results = [
            _run(engine, qkv, bias, pattern, grad) for engine in (triton_attend, tiled_attend)
        ]
    right = all(
        _differ(one, other) < TOLERANCE[dtype] for one, other in zip(*results, strict=True)
    )
    if not right:
        warnings.warn(
            f"the Triton kernels give wrong results on {device} for {pattern} in {dtype}; "
            "attend() uses impl='tiled' instead. Please report this with your versions.",
            stacklevel=2,
        )
    return right


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
