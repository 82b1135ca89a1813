"""impl="native": the C++ kernel, which reads the blocks that each tile names in place."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from foveal.ops.native import abi, build, plans
from foveal.ops.operator import new_output, unit_stride
from foveal.ops.selected.operands import Operands


def forward(x: Operands) -> tuple[Tensor, Tensor]:
    """out (batch, heads, n_queries, head_dim_v), laid out by `new_output`, and lse."""
    x.check_blocks()
    call = _Call(x)
    out = new_output(x.q, x.v.shape[-1])
    lse = call.lse_like()
    call.set_out(out, lse)
    call.run("foveal_forward")
    return out, lse.transpose(1, 2).contiguous() if call.folded else lse


def backward(
    x: Operands, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor
) -> list[Tensor]:
    """Gradients of q, k and v, laid out by `new_output`; tensors as in `forward`."""
    call = _Call(x)
    grads = [new_output(part, part.shape[-1]) for part in x[:3]]
    call.set_out(call.queries(out), call.per_query(lse))
    call.struct.d_out = call.matrix(call.queries(grad_out.to(out.dtype)))
    call.struct.d_lse = call.hold(call.per_query(grad_lse)).data_ptr()
    call.struct.d_q = call.matrix(grads[0])
    call.struct.d_k, call.struct.d_v = (abi.matrix(part) for part in grads[1:])
    call.run("foveal_backward")
    return grads


class _Call:
    """The arguments of one call of the kernel, and the tensors behind its pointers.

    Where tiles hold few queries, all heads that share their keys stand in one tile, or "folded":
    tokens then lie in rows of (batch, n_queries, heads), and query i of head h is row i heads + h.
    """

    def __init__(self, x: Operands) -> None:
        self.x = x
        self._held: list[object] = []
        self.folded = x.repeats > 1 and x.query_block < plans.WORD
        q, k, v = self.queries(x.q), self.hold(unit_stride(x.k)), self.hold(unit_stride(x.v))
        batch, heads, count, head_dim = x.q.shape
        groups = self._groups(heads if self.folded else 1)
        self.struct = abi.Call(
            batch=batch,
            kv_heads=x.k.shape[1],
            repeats=1 if self.folded else x.repeats,
            num_queries=count,
            num_keys=x.k.shape[2],
            head_dim=head_dim,
            value_dim=x.v.shape[3],
            groups=groups,
            num_groups=len(groups),
            threads=torch.get_num_threads(),
            is_bfloat16=x.q.dtype == torch.bfloat16,
            q=self.matrix(q),
            k=abi.matrix(k),
            v=abi.matrix(v),
            scale=x.scale,
            softcap=x.softcap,
        )
        if self.folded:
            self.struct.lse_batch, self.struct.lse_head = count * heads, x.repeats
        if x.key_mask is not None:
            mask = self.hold(x.key_mask.contiguous())
            self.struct.key_mask = mask.data_ptr()

    def _groups(self, step: int) -> ctypes.Array[abi.Group]:
        """Whole tiles, then the one that is shorter; queries of a tile are `step` rows apart."""
        x = self.x
        blocks = self.hold(x.blocks.to("cpu", torch.int64).contiguous())
        whole, rest = divmod(x.q.shape[2], x.query_block)
        shapes = [(0, whole, x.query_block), (whole, 1, rest)]
        found = []
        for first, tiles, size in shapes:
            if not (tiles and size):
                continue
            selection = abi.Selection(
                blocks.data_ptr() + first * x.blocks.shape[3] * blocks.itemsize,
                x.blocks.shape[3],
                x.num_tiles * x.blocks.shape[3],
                x.block_size,
                x.causal,
                x.first,
                step,
            )
            places = self._places(first, tiles, size, step)
            group = abi.Group(tiles, places.count, 0, places, selection=selection)
            found.append(group)
        groups = (abi.Group * len(found))(*found)
        self._held.append(groups)
        return groups

    def _places(self, first: int, tiles: int, size: int, step: int) -> abi.Places:
        """Rows of the queries of `tiles` tiles of `size` tokens each."""
        starts = (first + torch.arange(tiles, device="cpu")) * (self.x.query_block * step)
        items = torch.arange(size, device="cpu") * step
        if self.folded:
            items = (items[:, None] + torch.arange(self.x.repeats, device="cpu")).flatten()
        self.hold(starts), self.hold(items)
        return abi.Places(starts.data_ptr(), items.data_ptr(), 0, len(items))

    def queries(self, y: Tensor) -> Tensor:
        """(batch, heads, n_queries, dim), in rows as the kernel reads them."""
        if self.folded:
            return self.hold(y.transpose(1, 2).contiguous().transpose(1, 2))
        return self.hold(unit_stride(y))

    def matrix(self, y: Tensor) -> abi.Matrix:
        """A tensor as `queries` gives it."""
        if not self.folded:
            return abi.matrix(y)
        _, heads, count, dim = y.shape
        return abi.Matrix(y.data_ptr(), count * heads * dim, self.x.repeats * dim, dim)

    def per_query(self, y: Tensor) -> Tensor:
        """Numbers (batch, heads, n_queries) in the order of the rows."""
        y = y.to(torch.float32)
        return (y.transpose(1, 2) if self.folded else y).contiguous()

    def lse_like(self) -> Tensor:
        batch, heads, count, _ = self.x.q.shape
        shape = (batch, count, heads) if self.folded else (batch, heads, count)
        return self.x.q.new_empty(shape, dtype=torch.float32)

    def set_out(self, out: Tensor, lse: Tensor) -> None:
        self.struct.out = self.matrix(out)
        self.struct.lse = self.hold(lse).data_ptr()

    def hold(self, y: Tensor) -> Tensor:
        """Keep a tensor alive until the call is over."""
        self._held.append(y)
        return y

    def run(self, function: str) -> None:
        if getattr(build.library(), function)(ctypes.byref(self.struct)):
            raise MemoryError("the native kernel ran out of memory; try impl='tiled'.")
