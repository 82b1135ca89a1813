"""Validation of flex_attention()'s arguments, in words for people."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from torch import Tensor

from foveal.common.checks import as_bool, check_dense
from foveal.ops.checks import DTYPES
from foveal.ops.sharded import check_whole
from foveal.patterns import Pattern

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

ENDLESS = 1 << 30
"""The block size of a BlockMask of torch's that stands for none."""


def check_tensors(query: Any, key: Any, value: Any, enable_gqa: Any) -> None:
    """Raise TypeError or ValueError naming the first tensor, as in `attend`, that does not fit."""
    named = {"query": query, "key": key, "value": value}
    for name, x in named.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(x).__name__}.")
        if x.is_nested:
            raise ValueError(
                f"{name} must be no nested tensor; pack the sequences and mask them as documents."
            )
        check_dense(name, x)
        if x.ndim != 4:
            raise ValueError(
                f"{name} must be (batch, heads, length, head_dim), got shape {tuple(x.shape)}."
            )
    check_whole(query, key, value, names=tuple(named))
    if not query.dtype == key.dtype == value.dtype or query.dtype not in DTYPES:
        raise ValueError(
            "query, key and value must share one floating dtype (float64, float32, float16 or "
            f"bfloat16), got {query.dtype}, {key.dtype}, {value.dtype}."
        )
    if not query.device == key.device == value.device:
        raise ValueError(
            "query, key and value must be on one device, got "
            f"{query.device}, {key.device}, {value.device}."
        )
    as_bool("enable_gqa", enable_gqa)
    _check_shapes(query, key, value, enable_gqa)


def _check_shapes(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> None:
    shapes = f"got query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}."
    if key.shape[:3] != value.shape[:3]:
        raise ValueError(f"key and value must have the same batch, heads and length, {shapes}")
    if query.shape[3] != key.shape[3] or not query.shape[3]:
        raise ValueError(f"query and key must have the same head_dim, {shapes}")
    if key.shape[0] not in (query.shape[0], 1):
        raise ValueError(
            f"key must have the batch size of query, or one sequence for all, {shapes}"
        )
    heads, kv_heads = query.shape[1], key.shape[1]
    if heads != kv_heads and not enable_gqa:
        raise ValueError(f"key must have the heads of query unless enable_gqa=True, {shapes}")
    if not kv_heads or heads % kv_heads:
        raise ValueError(f"heads of query must be a multiple of the heads of key, {shapes}")


def check_mod(name: str, mod: Any, arguments: tuple[str, ...]) -> None:
    """Raise unless it can be called with these arguments."""
    wanted = f"{name}({', '.join(arguments)})"
    if not callable(mod):
        kind = type(mod).__name__
        hint = "; a BlockMask goes into block_mask=" if kind == "BlockMask" else ""
        raise TypeError(f"{name} must be a function {wanted} or None, got {kind}{hint}.")
    try:
        signature = inspect.signature(mod)
    except (TypeError, ValueError):  # written in C: it shows when it is called
        return
    try:
        signature.bind(*arguments)
    except TypeError:
        raise TypeError(f"{name} must take the arguments {wanted}, got {signature}.") from None


def check_block_mask(block_mask: Any, query: Tensor, key: Tensor) -> BlockMask | None:
    """The BlockMask, or None for one that stands for none; query and key as in `attend`.

    Raises:
        TypeError: it is something else.
        ValueError: it is of other lengths, another batch or number of heads, or elsewhere.
    """
    from torch.nn.attention.flex_attention import BlockMask

    if not isinstance(block_mask, BlockMask):
        raise TypeError(f"block_mask must be a BlockMask or None, got {_kind(block_mask)}.")
    if getattr(block_mask.mask_mod, "__name__", "") == "_sliced_mask_mod_error":
        raise ValueError(
            "block_mask was cut out of another BlockMask, which leaves it without a mask_mod; set "
            "block_mask.mask_mod, for positions that count from the cut."
        )
    if block_mask.kv_num_blocks.device != query.device:
        raise ValueError(
            f"block_mask must be on the device of query, {query.device}, got "
            f"{block_mask.kv_num_blocks.device}; use block_mask.to({str(query.device)!r})."
        )
    check_mod("mask_mod", block_mask.mask_mod, ("b", "h", "q_idx", "kv_idx"))
    if min(block_mask.BLOCK_SIZE) >= ENDLESS:
        return None
    _check_sizes(block_mask, (*query.shape[:3], key.shape[2]))
    return block_mask


def _check_sizes(block_mask: BlockMask, wanted: tuple[int, ...]) -> None:
    counts = block_mask.kv_num_blocks
    if counts.ndim != 3:
        raise ValueError(
            "block_mask must have a batch and heads, of one each where they are alike, got "
            f"kv_num_blocks of shape {tuple(counts.shape)}."
        )
    have = tuple(block_mask.shape[-2:])
    if have != wanted[2:]:
        raise ValueError(
            f"block_mask must be of the lengths of query and key, {wanted[2:]}, got {have}; make "
            "one for these lengths."
        )
    fits = all(own in (1, n) for own, n in zip(counts.shape[:2], wanted[:2], strict=True))
    if not fits:
        raise ValueError(
            "block_mask must be of batch and heads of query or 1, "
            f"{wanted[:2]}, got {tuple(counts.shape[:2])}."
        )
    rows = -(-wanted[2] // block_mask.BLOCK_SIZE[0])
    if counts.shape[2] < rows:
        raise ValueError(
            f"block_mask must list blocks for all {rows} rows of queries, got {counts.shape[2]}."
        )


def _kind(value: Any) -> str:
    if isinstance(value, Pattern):
        return f"a pattern; hand it to foveal.attend, or use {type(value).__name__}.block_mask"
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}; torch's create_block_mask makes one"
    if callable(value):
        return "a function; torch's create_block_mask makes a BlockMask of a mask_mod"
    return type(value).__name__


def check_options(options: Any, return_lse: Any, return_aux: Any) -> None:
    """Raise for options that cannot be honoured outside of torch's own kernels."""
    as_bool("return_lse", return_lse)
    if return_aux is not None and not (
        hasattr(return_aux, "lse") and hasattr(return_aux, "max_scores")
    ):
        raise TypeError(
            f"return_aux must be an AuxRequest or None, got {type(return_aux).__name__}."
        )
    if return_lse and return_aux is not None:
        raise ValueError("return_lse must be left out where return_aux says what to return.")
    if options is None:
        return
    if not isinstance(options, dict):
        raise TypeError(f"kernel_options must be a dict or None, got {type(options).__name__}.")
    backend = options.get("BACKEND", "AUTO")
    if backend != "AUTO":
        raise ValueError(
            "kernel_options['BACKEND'] must be 'AUTO' off CUDA, where torch's kernels do not run, "
            f"got {backend!r}."
        )
