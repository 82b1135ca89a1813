"""The C structures of plan.h."""

from __future__ import annotations

import ctypes
import struct
from ctypes import POINTER, Structure, c_double, c_int64, c_void_p

from torch import Tensor


class Places(Structure):
    _fields_ = [
        ("tiles", c_void_p),
        ("items", c_void_p),
        ("item_step", c_int64),
        ("count", c_int64),
    ]


class Selection(Structure):
    _fields_ = [
        ("blocks", c_void_p),
        *((name, c_int64) for name in ("count", "unit", "size", "causal", "first", "per_token")),
    ]


class Group(Structure):
    _fields_ = [
        ("num_tiles", c_int64),
        ("tile_q", c_int64),
        ("tile_k", c_int64),
        ("queries", Places),
        ("keys", POINTER(Places)),
        ("num_parts", c_int64),
        ("mask", c_void_p),
        ("mask_step", c_int64),
        ("window_rows", c_void_p),
        ("window_columns", c_void_p),
        ("selection", Selection),
    ]


class Matrix(Structure):
    _fields_ = [("data", c_void_p), ("batch", c_int64), ("head", c_int64), ("token", c_int64)]


class Bias(Structure):
    _fields_ = [
        ("data", c_void_p),
        ("batch", c_int64),
        ("head", c_int64),
        ("query", c_int64),
        ("key", c_int64),
    ]


class Table(Structure):
    _fields_ = [
        ("data", c_void_p),
        ("head", c_int64),
        ("query", c_void_p),
        ("key", c_void_p),
        ("size", c_int64),
    ]


class Call(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("batch", "kv_heads", "repeats", "num_queries")),
        *((name, c_int64) for name in ("num_keys", "head_dim", "value_dim")),
        ("groups", POINTER(Group)),
        *((name, c_int64) for name in ("num_groups", "threads", "is_bfloat16")),
        *((name, Matrix) for name in ("q", "k", "v", "out")),
        ("lse", c_void_p),
        ("scale", c_double),
        ("dropout_p", c_double),
        ("seeds", c_void_p),
        ("seed_step", c_int64),
        ("softcap", c_double),
        *((name, c_void_p) for name in ("order", "pieces")),
        ("num_pieces", c_int64),
        ("rows", Matrix),
        ("columns", Matrix),
        ("window_height", c_int64),
        ("window_width", c_int64),
        ("bias", Bias),
        ("key_mask", c_void_p),
        ("sinks", c_void_p),
        ("lse_batch", c_int64),
        ("lse_head", c_int64),
        ("table", Table),
        ("d_out", Matrix),
        ("d_lse", c_void_p),
        *((name, Matrix) for name in ("d_q", "d_k", "d_v", "d_rows", "d_columns")),
        ("d_bias", c_void_p),
        ("bias_copies", c_int64),
        ("bias_size", c_int64),
        ("delta", c_void_p),
        ("d_table", c_void_p),
    ]


_COMMON = struct.Struct("=11q 16q q dd2qd 3q")
"""What every call has: the fields before `rows`."""


def new_call(*values: float) -> Call:
    """A call from the values of the fields before `rows`, strides and addresses one by one.

    By name, as Python calls a structure, takes longer than short attention itself.
    """
    call = Call()
    _COMMON.pack_into(call, 0, *values)
    return call


class Affine(Structure):
    _fields_ = [("weight", c_void_p), ("bias", c_void_p), ("eps", c_double)]


class Layer(Structure):
    _fields_ = [
        *((name, Affine) for name in ("attn_norm", "to_qkv", "to_out")),
        *((name, Affine) for name in ("ff_norm", "to_hidden", "ff_out")),
        ("keys", c_void_p),
        ("values", c_void_p),
        *((name, c_int64) for name in ("head_step", "place", "held")),
    ]


class Stack(Structure):
    _fields_ = [
        ("layers", POINTER(Layer)),
        *((name, c_int64) for name in ("num_layers", "dim", "heads", "kv_heads")),
        *((name, c_int64) for name in ("head_dim", "hidden")),
        ("angles", c_void_p),
        ("x", c_void_p),
    ]


def matrix(x: Tensor | None) -> Matrix:
    """(batch, heads, tokens, features) with unit stride in the features."""
    if x is None:
        return Matrix()
    return Matrix(x.data_ptr(), *x.stride()[:3])


def broadcast(x: Tensor | None) -> Bias:
    """(batch or 1, heads or 1, queries or 1, keys or 1)"""
    if x is None:
        return Bias()
    steps = (stride if size > 1 else 0 for size, stride in zip(x.shape, x.stride(), strict=True))
    return Bias(x.data_ptr(), *steps)


def declare(library: ctypes.CDLL) -> None:
    """Tell ctypes the signatures of plan.h."""
    structures = {"foveal_forward": Call, "foveal_backward": Call, "foveal_step": Stack}
    for name, structure in structures.items():
        function = getattr(library, name)
        function.argtypes, function.restype = [POINTER(structure)], ctypes.c_int
