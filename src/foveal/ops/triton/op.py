"""impl="triton" behind an operator: what it can do, and the launch of its kernels."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

from foveal.ops.bias import WindowBias
from foveal.ops.operator import Operands, attention_operator, new_output
from foveal.ops.triton.sizes import MAX_WINDOW_WIDTH, sizes
from foveal.patterns import Halo, Pattern

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_HEAD_DIM = 256


# -- what it can do -----------------------------------------------------------------------------


def why_not(
    device: str,
    dtype: torch.dtype,
    pattern: Pattern,
    head_dim: int,
    bias: Tensor | WindowBias | None = None,
    dropout_p: float = 0.0,
) -> str | None:
    """The reason why the kernels cannot do a call, or None when they can; imports nothing."""
    if not isinstance(pattern, Halo):
        return f"its kernels are for Halo patterns, not for {type(pattern).__name__}"
    if pattern.window[1] > MAX_WINDOW_WIDTH:
        return f"its windows are at most {MAX_WINDOW_WIDTH} wide, not {pattern.window[1]}"
    if head_dim > MAX_HEAD_DIM:
        return f"its heads have at most {MAX_HEAD_DIM} features, not {head_dim}"
    if isinstance(bias, Tensor):
        return "it adds no bias but a WindowBias"
    if dropout_p:
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
        self.q, self.k, self.v = (_unit_stride(x) for x in operands[:3])
        self.rows, self.columns = operands.rows, operands.columns
        if self.rows is not None and self.columns is not None:
            self.rows, self.columns = _unit_stride(self.rows), _unit_stride(self.columns)
        self.mask = operands.key_mask
        if self.mask is not None:
            self.mask = self.mask.contiguous().view(torch.uint8)
        self.batch, self.heads, self.num_queries, dim = self.q.shape
        self.num_keys, dim_v = self.v.shape[2:]
        self.sizes = sizes(pattern, dim, dim_v, self.q.dtype)
        self._set_grid(pattern)
        self.scalars = (operands.scale, self.heads, self.heads // self.k.shape[1])
        self.lengths = (self.num_queries, self.num_keys, pattern.query_size[1], pattern.width)
        self.constants: dict[str, Any] = {
            "QUERY_H": pattern.block[0] // pattern.query_stride,
            "QUERY_W": pattern.block[1] // pattern.query_stride,
            "STRIDE": pattern.query_stride,
            "HALO_H": pattern.halo[0],
            "HALO_W": pattern.halo[1],
            "DIM": dim,
            "DIM_V": dim_v,
            "M": self.sizes.queries,
            "D": self.sizes.dim,
            "E": self.sizes.dim_v,
            "PRECISION": _precision(),
            "num_warps": self.sizes.num_warps,
            "num_stages": self.sizes.num_stages,
        }

    def _set_grid(self, pattern: Halo) -> None:
        """Blocks of queries and tiles of keys, of which a sequence may fill the first rows."""
        block, stride = pattern.block, pattern.query_stride
        height = _ceil(self.num_keys, pattern.width)
        self.blocks = _ceil(height, block[0]), _ceil(pattern.width, block[1])
        tile = self.sizes.key_tile
        self.key_tiles = _ceil(height, tile[0]), _ceil(pattern.width, tile[1])
        chunks = _ceil(block[0] * block[1] // stride**2, self.sizes.queries)
        self.query_tiles = self.blocks[0] * self.blocks[1] * chunks

    @property
    def inputs(self) -> list[Any]:
        tensors = (self.q, self.k, self.v, self.rows, self.columns)
        return [argument for x in tensors for argument in _strided(x)]

    def query_kernel(self, kernel: Any, *tensors: Any) -> None:
        """One program for each tile of queries, head and image."""
        kernel[(self.query_tiles * self.heads * self.batch,)](
            *self.inputs,
            *tensors,
            self.mask,
            *self.scalars,
            *self.lengths,
            self.blocks[1],
            self.query_tiles,
            R=self.sizes.rows,
            C=self.sizes.columns,
            **self.constants,
        )

    def key_kernel(self, kernel: Any, *tensors: Any) -> None:
        """One program for each tile of keys, key head and image."""
        tiles = self.key_tiles[0] * self.key_tiles[1]
        kernel[(tiles * self.k.shape[1] * self.batch,)](
            *self.inputs,
            *tensors,
            self.mask,
            *self.scalars,
            *self.lengths,
            *self.blocks,
            tiles,
            self.key_tiles[1],
            H=self.sizes.key_tile[0],
            W=self.sizes.key_tile[1],
            **self.constants,
        )


def _forward(operands: Operands) -> tuple[Tensor, Tensor]:
    from foveal.ops.triton.kernels import forward_kernel

    q = operands.q
    out = new_output(q, operands.v.shape[-1])
    lse = q.new_empty(q.shape[:-1], dtype=torch.float32)
    if lse.numel():
        with _on(q):
            _Launch(operands).query_kernel(forward_kernel, *_strided(out), lse)
    return out, lse


def _backward(
    operands: Operands, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor
) -> list[Tensor]:
    from foveal.ops.triton.kernels import key_gradient_kernel, query_gradient_kernel

    grads = [None if x is None else new_output(x, x.shape[-1]) for x in _differentiable(operands)]
    d_q, d_k, d_v, d_rows, d_columns = grads
    if lse.numel():
        launch = _Launch(operands)
        out, grad_out = _unit_stride(out), _unit_stride(grad_out)
        lse, grad_lse = lse.contiguous(), grad_lse.contiguous()
        delta = torch.empty_like(lse)
        mine = (out, grad_out, d_q, d_rows, d_columns)
        with _on(operands.q):
            launch.query_kernel(
                query_gradient_kernel,
                *(argument for x in mine for argument in _strided(x)),
                lse,
                grad_lse,
                delta,
            )
            launch.key_kernel(
                key_gradient_kernel,
                *(argument for x in (grad_out, d_k, d_v) for argument in _strided(x)),
                lse,
                delta,
            )
    return [grad for grad in grads if grad is not None]


def _differentiable(operands: Operands) -> tuple[Tensor | None, ...]:
    return (*operands[:3], operands.rows, operands.columns)


def _strided(x: Tensor | None) -> tuple[Any, ...]:
    """A tensor (batch, heads, tokens, features) as the kernels take it."""
    return (None, 0, 0, 0) if x is None else (x, *x.stride()[:3])


def _precision() -> str:
    """How float32 is multiplied: as torch does, exactly unless the user allows otherwise."""
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def _on(x: Tensor) -> Any:
    """Triton launches on the current device."""
    return torch.cuda.device_of(x)


def _unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _ceil(count: int, size: int) -> int:
    return -(-count // size)


triton_attend = attention_operator("triton", _forward, _backward)
