"""impl="native" behind an operator."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from foveal.ops.bias import MASKED, finite
from foveal.ops.native import abi, build, plans
from foveal.ops.operator import Operands, attention_operator, new_output, unit_stride
from foveal.ops.trust import agrees
from foveal.patterns import SlidingWindow
from foveal.patterns.offsets import Codes

DTYPES = (torch.float32, torch.bfloat16)
SUMS = torch.float32
"""What every pointer but those of q, k, v, out and their gradients points to."""

LOG2E = 1.4426950408889634
HUGE = 3e38
"""What a number of a table counts at most, times log2(e)."""

GRADIENTS = ("d_q", "d_k", "d_v", "d_rows", "d_columns")


def why_not(device: str, dtype: torch.dtype) -> str | None:
    """The reason why the kernel does not serve this device and dtype, or None; builds nothing."""
    if device != "cpu":
        return f"it runs on the CPU, not on {device}"
    if dtype not in DTYPES:
        return f"it computes float32 and bfloat16, not {str(dtype).removeprefix('torch.')}"
    return build.why_not()


def ready() -> bool:
    """Whether the kernel is loaded and right; compiles it if need be."""
    try:
        build.library()
    except build.NativeError:
        return False
    return _right(build.level())


@functools.lru_cache
def _right(level: str) -> bool:
    """Whether the loaded kernel gives the results of `tiled`: compilers have been wrong."""
    window = SlidingWindow(9, causal=False)
    # pairs of bfloat16 have instructions of their own; elsewhere they become float32
    dtypes = DTYPES if level.endswith("+bf16") else DTYPES[:1]
    name, sizes = "the native kernel", (70, (16, 16))
    right = all(agrees(name, native_attend, window, *sizes, one, "cpu") for one in dtypes)
    if not right:
        build.give_up(level, "it gave wrong results in its self-check")
    return right


# what torch.compiler.assume_constant_result does, which would import the compiler (a second)
why_not._dynamo_marked_constant = True  # type: ignore[attr-defined]
ready._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _forward(operands: Operands) -> tuple[Tensor, Tensor]:
    q = operands.q
    out = new_output(q, operands.v.shape[-1])
    lse = q.new_empty(q.shape[:-1], dtype=SUMS)
    call = _Call(operands, out, lse)
    if not call.plan.covers_all:
        out.zero_()
        if operands.sinks is None:
            lse.fill_(-torch.inf)
        else:
            lse.copy_(_by_query(operands.sinks))
    call.run("foveal_forward")
    return out, lse


def _backward(
    operands: Operands, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor
) -> list[Tensor]:
    call = _Call(operands, unit_stride(out), lse.to(SUMS).contiguous())
    grads = {}
    given = (*operands[:3], operands.rows, operands.columns)
    for name, x in zip(GRADIENTS, given, strict=True):
        if x is not None:
            grad = new_output(x if name in GRADIENTS[:3] else x.to(SUMS), x.shape[-1])
            # the kernel itself clears the gradients of keys and values
            whole = call.plan.covers_all or name in ("d_k", "d_v")
            grads[name] = grad if whole else grad.zero_()
            call.set(name, abi.matrix(grad))
    bias = call.gradient()
    call.set("d_out", abi.matrix(call.hold(unit_stride(grad_out.to(out.dtype)))))
    call.set("d_lse", call.hold(grad_lse.to(SUMS).contiguous()).data_ptr())
    delta = None if operands.sinks is None else grad_lse.to(SUMS).neg()  # of queries in no tile
    if delta is not None:
        delta = call.hold(delta.contiguous())
        call.set("delta", delta.data_ptr())
    call.run("foveal_backward")
    found = [grads[name] for name in GRADIENTS[:3]]
    found += [] if bias is None else [bias()]
    found += [grads[name] for name in GRADIENTS[3:] if name in grads]
    if delta is not None and operands.sinks is not None:
        found.append(_sink_gradient(operands.sinks, lse, delta))
    return [grad.to(x.dtype) for grad, x in zip(found, operands.given, strict=True)]


def _by_query(sinks: Tensor) -> Tensor:
    return sinks.to(SUMS)[:, None]


def _sink_gradient(sinks: Tensor, lse: Tensor, delta: Tensor) -> Tensor:
    """(heads,), from the `delta` of the kernel: a sink is a key whose value is zero."""
    weights = (_by_query(sinks) - lse).exp().masked_fill(lse == -torch.inf, 0.0)
    return -(weights * delta).sum((0, 2))


class _Call:
    """The arguments of one call of the kernel, and the tensors behind its pointers."""

    def __init__(self, operands: Operands, out: Tensor, lse: Tensor) -> None:
        self._held: list[Tensor] = [out, lse]
        self.operands = operands
        q, k, v = (self.hold(unit_stride(x)) for x in operands[:3])
        batch, heads, num_queries, head_dim = q.shape
        kv_heads, num_keys = k.shape[1:3]
        seed = operands.seed
        self.plan = plan = plans.plan(operands.pattern, num_keys, operands.rows is not None)
        self.struct = abi.new_call(
            *(batch, kv_heads, heads // kv_heads, num_queries, num_keys, head_dim, v.shape[3]),
            *(plan.groups, plan.num_groups, torch.get_num_threads(), q.dtype == torch.bfloat16),
            *(q.data_ptr(), *q.stride()[:3]),
            *(k.data_ptr(), *k.stride()[:3]),
            *(v.data_ptr(), *v.stride()[:3]),
            *(out.data_ptr(), *out.stride()[:3]),
            *(lse.data_ptr(), operands.scale, operands.dropout_p),
            *(0 if seed is None else seed.data_ptr(), int(seed is not None and seed.ndim > 0)),
            operands.softcap,
            *(plan.order, plan.pieces, plan.num_pieces),
        )
        self._set_extras()

    def _set_extras(self) -> None:
        x = self.operands
        if x.rows is not None and x.columns is not None:
            rows, columns = (self.hold(unit_stride(part.to(SUMS))) for part in (x.rows, x.columns))
            self.set("rows", abi.matrix(rows))
            self.set("columns", abi.matrix(columns))
            self.set("window_height", rows.shape[-1])
            self.set("window_width", columns.shape[-1])
        bias, key_mask = x.bias, x.key_mask
        if key_mask is not None and key_mask.is_floating_point():  # added as it stands
            bias, key_mask = key_mask[:, None, None, :], key_mask > MASKED / 2
        if x.sinks is not None:
            self.set("sinks", self.hold(x.sinks.to(SUMS).contiguous()).data_ptr())
        if bias is not None and self.plan.codes is not None:
            self._set_table(bias, self.plan.codes)
        elif bias is not None:
            self.set("bias", abi.broadcast(self.hold(finite(bias, SUMS))))
        if key_mask is not None:
            self.set("key_mask", self.hold(key_mask.to(torch.bool).contiguous()).data_ptr())

    def _set_table(self, bias: Tensor, codes: Codes) -> None:
        """bias (1, heads or 1, 1, rows): what each difference of codes gains."""
        table = finite(bias, SUMS)[0, :, 0].mul(LOG2E).clamp_(-HUGE, HUGE)
        values = table.index_select(1, codes.rows)
        head = values.stride(0) if len(table) > 1 else 0
        places = (codes.query.data_ptr(), codes.key.data_ptr(), len(codes.rows) - plans.PADDING)
        self.set("table", abi.Table(self.hold(values).data_ptr(), head, *places))

    def gradient(self) -> Callable[[], Tensor] | None:
        """Where the gradient of the bias goes; what is returned reads it after the run."""
        bias, codes = self.operands.bias, self.plan.codes
        if bias is None:
            return None
        if codes is None:
            grad = self._bias_gradient(bias)
            return lambda: grad.sum(0)
        heads, rows = self.operands.q.shape[1], bias.shape[3]
        own = codes.rows[: -plans.PADDING]
        sums = torch.empty(heads, len(own), dtype=SUMS, device="cpu")
        self.set("d_table", self.hold(sums).data_ptr())

        def by_row() -> Tensor:
            first = torch.arange(heads, device="cpu") * rows * (bias.shape[1] > 1)
            found = torch.zeros(bias.shape[1] * rows, dtype=torch.float64, device="cpu")
            places = (own + first[:, None]).flatten()
            found.index_add_(0, places, sums.flatten().double())
            return found.view(bias.shape)

        return by_row

    def _bias_gradient(self, bias: Tensor) -> Tensor:
        """Zeros (copies, *bias.shape): a copy a thread where threads meet in it, else one."""
        full = self.operands.q.shape[:3]
        shared = any(have == 1 < want for have, want in zip(bias.shape, full, strict=False))
        copies = torch.get_num_threads() if shared else 1
        # the process may have another default dtype and device
        grad = torch.zeros(copies, *bias.shape, dtype=SUMS, device="cpu")
        self.set("bias", abi.broadcast(self.hold(finite(bias, SUMS).contiguous())))
        self.set("d_bias", grad.data_ptr())
        self.set("bias_copies", copies if shared else 0)
        self.set("bias_size", grad[0].numel())
        return grad

    def hold(self, x: Tensor) -> Tensor:
        """Keep x alive until the call is over."""
        self._held.append(x)
        return x

    def set(self, name: str, value: Any) -> None:
        setattr(self.struct, name, value)

    def run(self, function: str) -> None:
        if getattr(build.library(), function)(ctypes.byref(self.struct)):
            raise MemoryError("the native kernel ran out of memory; try impl='tiled'.")


native_attend = attention_operator("native", _forward, _backward, takes_sinks=True)
