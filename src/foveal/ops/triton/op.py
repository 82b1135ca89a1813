"""impl="triton" behind an operator: what it can do, and the launch of its kernels."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

from foveal.ops.operator import Operands, attention_operator, new_output, unit_stride
from foveal.ops.triton.sizes import (
    Tile,
    key_sides,
    padded,
    query_sides,
    tiles,
    widest_window,
)
from foveal.patterns import Halo, Pattern
from foveal.patterns.subclasses import is_a

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_HEAD_DIM = 256


# -- what it can do -----------------------------------------------------------------------------


def why_not(
    device: str,
    dtype: torch.dtype,
    pattern: Pattern,
    head_dim: int,
    bias: str | None = None,
    dropout: bool = False,
) -> str | None:
    """The reason why the kernels cannot do a call, or None; `bias` as in `Work`."""
    if not is_a(pattern, Halo):
        return f"its kernels are for Halo patterns, not for {type(pattern).__name__}"
    if len(pattern.sides) != 2 or pattern.causal:
        return f"its kernels are for images (height, width) without causality, not for {pattern}"
    if head_dim > MAX_HEAD_DIM:
        return f"its heads have at most {MAX_HEAD_DIM} features, not {head_dim}"
    if pattern.window[1] > (widest := widest_window(head_dim, dtype)):
        return f"its windows are at most {widest} wide at this head_dim, not {pattern.window[1]}"
    if bias not in (None, "window"):
        return "it adds no bias but a WindowBias"
    if dropout:
        return "it has no dropout"
    return _unavailable(device, dtype)


def _unavailable(device: str, dtype: torch.dtype) -> str | None:
    """The reason why no call works with this device and dtype, or None."""
    interpreted = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")
    if device != "cuda" and not (device == "cpu" and interpreted):
        return f"it runs on CUDA, not on {device} (TRITON_INTERPRET=1 interprets it on the CPU)"
    if dtype not in DTYPES:
        return f"it computes float32, float16 and bfloat16, not {_name(dtype)}"
    if interpreted and dtype == torch.bfloat16:
        return "Triton's interpreter multiplies bfloat16 wrongly"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    return None


# what torch.compiler.assume_constant_result does, which would import the compiler (a second)
_unavailable._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# -- launching ----------------------------------------------------------------------------------


class _Launch:
    """What the kernels of one call share."""

    def __init__(self, operands: Operands) -> None:
        pattern = operands.pattern
        assert isinstance(pattern, Halo)
        q, k, v = (unit_stride(x) for x in operands[:3])
        bias = (None if x is None else unit_stride(x) for x in (operands.rows, operands.columns))
        self.pattern = pattern
        self.inputs = [argument for x in (q, k, v, *bias) for argument in _strided(x)]
        self.mask = operands.key_mask
        if self.mask is not None:
            self.mask = self.mask.contiguous().view(torch.uint8)
        self.heads, self.key_heads = (
            q.shape[0] * q.shape[1],
            k.shape[0] * k.shape[1],
        )  # times batch
        self.scalars = (
            operands.scale,
            operands.softcap or None,
            q.shape[1],
            q.shape[1] // k.shape[1],
        )
        self.lengths = (q.shape[2], k.shape[2], pattern.query_size[1], pattern.width)
        # a sequence may fill only the first rows of its image
        self.size = _ceil(k.shape[2], pattern.width), pattern.width
        self.blocks = [_ceil(n, side) for n, side in zip(self.size, pattern.block, strict=True)]
        self.tiles = tiles(max(q.shape[3], v.shape[3]), q.dtype)
        self.constants: dict[str, Any] = {
            "QUERY_H": pattern.block[0] // pattern.query_stride,
            "QUERY_W": pattern.block[1] // pattern.query_stride,
            "STRIDE": pattern.query_stride,
            "HALO_H": pattern.halo[0],
            "HALO_W": pattern.halo[1],
            "DIM": q.shape[3],
            "DIM_V": v.shape[3],
            "D": padded(q.shape[3]),
            "E": padded(v.shape[3]),
            "PRECISION": _precision(),
            "num_stages": 2,
            "enable_fp_fusion": True,
        }

    def by_query(self, kernel: Any, tile: Tile, *tensors: Any) -> None:
        """One program for each tile of queries, head and image."""
        sides = query_sides(self.pattern, tile)
        block = self.constants["QUERY_H"] * self.constants["QUERY_W"]
        count = self.blocks[0] * self.blocks[1] * _ceil(block, sides["M"])
        grid = (self.blocks[1], count)
        self._run(kernel, count * self.heads, tile, sides, tensors, grid)

    def by_key(self, kernel: Any, tile: Tile, *tensors: Any) -> None:
        """One program for each tile of keys, key head and image."""
        sides = key_sides(self.pattern, tile)
        down, across = _ceil(self.size[0], sides["H"]), _ceil(self.size[1], sides["W"])
        grid = (*self.blocks, down * across, across)
        self._run(kernel, down * across * self.key_heads, tile, sides, tensors, grid)

    def _run(
        self,
        kernel: Any,
        programs: int,
        tile: Tile,
        sides: dict[str, int],
        tensors: tuple[Any, ...],
        grid: tuple[int, ...],
    ) -> None:
        arguments = (*self.inputs, *tensors, self.mask, *self.scalars, *self.lengths, *grid)
        options = {**self.constants, **sides, "num_warps": tile.num_warps}
        with torch.cuda.device_of(self.inputs[0]):  # where Triton launches
            kernel[(programs,)](*arguments, **options)


def _forward(operands: Operands) -> tuple[Tensor, Tensor]:
    from foveal.ops.triton.kernels import forward_kernel

    q = operands.q
    out = new_output(q, operands.v.shape[-1])
    lse = q.new_empty(q.shape[:-1], dtype=torch.float32)
    if lse.numel():
        launch = _Launch(operands)
        launch.by_query(forward_kernel, launch.tiles.forward, *_strided(out), lse)
    return out, lse


def _backward(
    operands: Operands, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor
) -> list[Tensor]:
    from foveal.ops.triton.kernels import key_gradient_kernel, query_gradient_kernel

    grads = [None if x is None else new_output(x, x.shape[-1]) for x in _differentiable(operands)]
    d_q, d_k, d_v, d_rows, d_columns = grads
    if lse.numel():
        launch = _Launch(operands)
        out, grad_out = unit_stride(out), unit_stride(grad_out)
        lse, grad_lse = lse.contiguous(), grad_lse.contiguous()
        delta = torch.empty_like(lse)
        tensors = [x for t in (out, grad_out, d_q, d_rows, d_columns) for x in _strided(t)]
        tile = launch.tiles.query_gradient
        launch.by_query(query_gradient_kernel, tile, *tensors, lse, grad_lse, delta)
        tensors = [x for t in (grad_out, d_k, d_v) for x in _strided(t)]
        launch.by_key(key_gradient_kernel, launch.tiles.key_gradient, *tensors, lse, delta)
    return [grad for grad in grads if grad is not None]


def _differentiable(operands: Operands) -> tuple[Tensor | None, ...]:
    return (*operands[:3], operands.rows, operands.columns)


def _strided(x: Tensor | None) -> tuple[Any, ...]:
    """A tensor (batch, heads, tokens, features) as the kernels take it."""
    return (None, 0, 0, 0) if x is None else (x, *x.stride()[:3])


def _precision() -> str:
    """How float32 is multiplied: as well as torch does, unless the user asks for speed.

    Three TF32 products are exact to float32 rounding; plain float32 has no tensor cores.
    """
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "tf32x3"


def _ceil(count: int, size: int) -> int:
    return -(-count // size)


triton_attend = attention_operator("triton", _forward, _backward)
