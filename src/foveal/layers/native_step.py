"""A stack of small plain blocks stepped by one call of the native kernel."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor, nn

from foveal.caches import AttentionCache
from foveal.common.locks import thread_lock
from foveal.layers.feed_forward import FeedForward
from foveal.layers.linear import FEW_WEIGHTS, is_plain
from foveal.layers.prepared import can_prepare_attention, does_something
from foveal.layers.rotary import Rotary
from foveal.layers.weights import is_traced
from foveal.ops.native import abi, build, ready

FIELDS = {
    "attn.to_qkv": "to_qkv",
    "attn.to_out": "to_out",
    "ff.to_hidden": "to_hidden",
    "ff.to_out": "ff_out",
    "attn_norm": "attn_norm",
    "ff_norm": "ff_norm",
}
"""Parts of a block, and their names in the kernel."""
PROJECTIONS, NORMS = list(FIELDS)[:4], list(FIELDS)[4:]


def native_step(blocks: list[Any], rows: int) -> NativeStep | None:
    """What steps through the blocks by the kernel; None where it does not serve.

    It serves one row of float32 on a CPU, whose weights one core reads as fast as several would,
    and only if the kernel is there already.
    """
    if rows != 1 or not blocks or is_traced() or not all(map(_is_known, blocks)):
        return None
    if len(set(map(_sizes, blocks))) != 1 or not (build.at_hand() and ready()):
        return None
    return _step(blocks, blocks[0].attn.to_qkv.in_features)


def _is_known(block: Any) -> bool:
    attn, ff = block.attn, block.ff
    if not (can_prepare_attention(attn) and is_plain(ff, FeedForward) and ff.activation == "gelu"):
        return False
    projections = [block.get_submodule(name) for name in PROJECTIONS]
    norms = [block.get_submodule(name) for name in NORMS]
    weights = [one.weight for one in projections if is_plain(one)]
    tensors = _tensors([*projections, *norms])
    return (
        len(weights) == len(PROJECTIONS)
        and all(weight.numel() <= FEW_WEIGHTS for weight in weights)
        and all(is_plain(norm, nn.LayerNorm) for norm in norms)
        and not (does_something(block.dropout) or does_something(ff.dropout))
        and (attn.rotary is None or is_plain(attn.rotary, Rotary))
        and not attn.shaping
        and all(map(_is_readable, tensors))
        and _fits(attn, projections, norms)
    )


def _tensors(parts: list[Any]) -> list[Tensor]:
    """Weights and biases, parameters or not."""
    return [one for part in parts for one in (part.weight, part.bias) if one is not None]


def _fits(attn: Any, projections: list[Any], norms: list[Any]) -> bool:
    """Whether sizes are those that the kernel reads: it checks none."""
    dim, size = attn.to_qkv.weight.shape[1], attn.dim_head
    hidden = len(projections[2].weight)
    wanted = [
        ((attn.heads + 2 * attn.kv_heads) * size, dim),
        (dim, attn.heads * size),
        (hidden, dim),
        (dim, hidden),
    ]
    return (
        [tuple(one.weight.shape) for one in projections] == wanted
        and all(one.bias is None or one.bias.shape == one.weight.shape[:1] for one in projections)
        and all(one.normalized_shape == (dim,) for one in norms)
        and (attn.rotary is None or attn.rotary.dim == size)
    )


def _is_readable(x: Tensor) -> bool:
    return (
        type(x) is nn.Parameter
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and x.is_contiguous()
    )


def _sizes(block: Any) -> tuple[Any, ...]:
    attn, turn = block.attn, block.attn.rotary
    positions = None if turn is None else (turn.dim, turn.base)
    return attn.heads, attn.kv_heads, attn.dim_head, block.ff.to_hidden.out_features, positions


def _affine(part: Any) -> abi.Affine:
    weight, bias = (None if x is None else x.data_ptr() for x in (part.weight, part.bias))
    return abi.Affine(weight, bias, getattr(part, "eps", 0.0))


def _step(blocks: list[Any], dim: int) -> NativeStep:
    call = abi.Stack(None, len(blocks), dim, *_sizes(blocks[0])[:4])
    layers = (abi.Layer * len(blocks))()
    weights = []
    for layer, block in zip(layers, blocks, strict=True):
        for name in (*PROJECTIONS, *NORMS):
            part = block.get_submodule(name)
            setattr(layer, FIELDS[name], _affine(part))
            weights += _tensors([part])
    call.layers = layers
    return NativeStep(call, layers, weights, blocks[0].attn.rotary)


class NativeStep:
    """The call, and the tensors behind its pointers."""

    def __init__(self, call: Any, layers: Any, weights: list[Tensor], rotary: Any) -> None:
        self._call, self._layers, self._weights, self._rotary = call, layers, weights, rotary
        self._run = build.library().foveal_step
        self._checked: Any = None
        self._pointers = self._point()
        self._lock = thread_lock(self, "_lock")  # one call for all threads

    def _point(self) -> list[int]:
        return [one.data_ptr() for one in self._weights]

    def serves(self, x: Tensor, parts: list[Any]) -> bool:
        """Whether x (1, 1, dim) and the caches of the layers are of the kind it knows.

        And whether the weights still lie where they lay: `.to` and others move them.
        """
        if parts is not self._checked:
            if len(parts) != self._call.num_layers or not all(map(self._is_known_cache, parts)):
                return False
            self._checked = parts
        return type(x) is Tensor and x.dtype == torch.float32 and self._point() == self._pointers

    def _is_known_cache(self, cache: Any) -> bool:
        return (
            type(cache) is AttentionCache
            and cache.reads_held
            and cache.dtype == torch.float32
            and cache.sizes == (1, self._call.kv_heads, self._call.head_dim)
        )

    def __call__(self, x: Tensor, parts: list[AttentionCache]) -> Tensor:
        """x (1, 1, dim) -> (dim,); the caches hold it afterwards."""
        row = x.reshape(-1).clone()
        with self._lock:
            self._call.x = row.data_ptr()
            if self._rotary is not None:
                angles = self._rotary.row(parts[0].position, x.device)
                self._call.angles = angles.data_ptr()
            for layer, cache in zip(self._layers, parts, strict=True):
                data, layer.place, layer.held = cache.claim()
                layer.keys = first = data.data_ptr()
                layer.values = first + 4 * data.stride(0)
                layer.head_step = data.stride(2)
            if self._run(ctypes.byref(self._call)):
                raise MemoryError("the native kernel ran out of memory.")
        return row
