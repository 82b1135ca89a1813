"""attend_selected(): each tile of queries reads the blocks of keys that a tensor names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, overload

import torch
from torch import Tensor

from foveal.common.checks import as_bool, as_int, check_dense
from foveal.common.words import suggest
from foveal.ops import autocast, native
from foveal.ops.checks import as_scale, as_softcap, check_sizes, check_tensors, fold_scale
from foveal.ops.choose import forced
from foveal.ops.logits import with_sinks
from foveal.ops.selected import reference
from foveal.ops.selected.operands import Operands
from foveal.ops.selected.operator import selected_native, selected_tiled
from foveal.ops.work import work_of
from foveal.patterns import Full

ENGINES: dict[str, Callable[[Operands], tuple[Tensor, Tensor]]] = {
    "native": selected_native,
    "tiled": selected_tiled,
    "reference": reference.forward,
}
"""Every implementation by its name, the fastest first."""


@overload
def attend_selected(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: Tensor,
    block_size: int,
    *,
    causal: bool = True,
    query_block: int | None = None,
    key_mask: Tensor | None = None,
    scale: float | Tensor | None = None,
    sinks: Tensor | None = None,
    softcap: float | None = None,
    q_offset: int = 0,
    impl: str | None = None,
    return_lse: Literal[False] = False,
) -> Tensor: ...
@overload
def attend_selected(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: Tensor,
    block_size: int,
    *,
    causal: bool = True,
    query_block: int | None = None,
    key_mask: Tensor | None = None,
    scale: float | Tensor | None = None,
    sinks: Tensor | None = None,
    softcap: float | None = None,
    q_offset: int = 0,
    impl: str | None = None,
    return_lse: Literal[True],
) -> tuple[Tensor, Tensor]: ...
def attend_selected(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: Tensor,
    block_size: int,
    *,
    causal: bool = True,
    query_block: int | None = None,
    key_mask: Tensor | None = None,
    scale: float | Tensor | None = None,
    sinks: Tensor | None = None,
    softcap: float | None = None,
    q_offset: int = 0,
    impl: str | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Softmax attention over blocks of keys that are chosen at run time.

    What `attend` is for patterns, this is for choices that depend on the input: the selected
    branch of NSA (Yuan et al., "Native Sparse Attention", 2025), MoBA (Lu et al., 2025) and VSA
    (Zhang et al., 2025). It selects nothing itself: `blocks` gets no gradient.

    Args:
        q: (batch, heads, n_queries, head_dim).
        k: (batch, kv_heads, n_keys, head_dim); kv_heads divides heads, and all query heads of a
            key head share its selection.
        v: (batch, kv_heads, n_keys, head_dim_v).
        blocks: (batch, kv_heads, tiles, count) of any int dtype, with ceil(n_queries /
            query_block) tiles: the blocks that each tile of queries reads. Block b holds the keys
            from b * block_size on; a number below 0 is no block, one that comes twice counts
            once, and their order does not matter.
        block_size: keys in a block; the last may be shorter.
        causal: whether a query reads no token after its own, of whatever block.
        query_block: queries in a tile; as many as keys in a block when None. Tiles are counted
            from the first query of the call.
        key_mask, scale, sinks, softcap, return_lse: as in `attend`.
        q_offset: the token at which the first query stands; -1 when the queries are the last
            tokens, as in decoding. Only causal attention asks for it.
        impl: "reference", "tiled" or "native"; None picks the fastest that fits.

    Returns:
        out (batch, heads, n_queries, head_dim_v), and with `return_lse` the log-sum-exp (batch,
        heads, n_queries), as in `attend`: zeros and -inf for a query without keys.

    Raises:
        TypeError: what must be a tensor or a number is none.
        ValueError: shapes, dtypes, blocks or options do not fit; impl cannot do this call.

    Example:
        >>> import torch, foveal
        >>> q, k = torch.randn(1, 8, 1000, 64), torch.randn(1, 2, 1000, 64)
        >>> blocks = torch.randint(-1, 16, (1, 2, 16, 4))
        >>> foveal.attend_selected(q, k, k, blocks, 64).shape
        torch.Size([1, 8, 1000, 64])
    """
    device = q.device.type if isinstance(q, Tensor) else "cpu"
    if autocast.is_on(device):
        q, k, v = autocast.lowered(q, k, v)
        options: dict[str, Any] = {"causal": causal, "query_block": query_block}
        options |= {"key_mask": key_mask, "scale": scale, "sinks": sinks, "softcap": softcap}
        options |= {"q_offset": q_offset, "impl": impl, "return_lse": return_lse}
        with autocast.off(device):
            return attend_selected(q, k, v, blocks, block_size, **options)
    if not torch.compiler.is_compiling():
        check_tensors(q, k, v, Full(), None, key_mask, 0.0, return_lse, sinks, scale)
        check_sizes(work_of(q, k, v, Full(), None, key_mask, 0.0, return_lse))
        softcap, causal = as_softcap(softcap), as_bool("causal", causal)
        block_size = as_int("block_size", block_size, 1)
        query_block = None if query_block is None else as_int("query_block", query_block, 1)
        _check_blocks(q, k, blocks, block_size if query_block is None else query_block)
    first = first_of(q_offset, q.shape[2], k.shape[2])
    if scale is None:
        scale = q.shape[3] ** -0.5
    elif isinstance(scale, Tensor):
        q, scale = fold_scale(q, scale), 1.0
    elif not torch.compiler.is_compiling():
        scale = as_scale(scale)
    assert not isinstance(scale, Tensor)
    size, tile = block_size, block_size if query_block is None else query_block
    if blocks.shape[2] <= 1:  # no larger than what there is
        tile = max(1, q.shape[2])
    if k.shape[2] <= size:
        size = max(1, k.shape[2])
    operands = Operands(
        q, k, v, blocks, key_mask, size, tile, causal, first, scale, softcap or 0.0
    )
    out, lse = with_sinks(*_engine(impl, operands)(operands), sinks)
    return (out, lse) if return_lse else out


def first_of(q_offset: Any, n_queries: int, n_keys: int) -> int:
    """The token at which the first query stands.

    Raises:
        ValueError: q_offset is no int of at least -1, or the queries would stand before the keys.
    """
    first = as_int("q_offset", q_offset, -1)
    if first != -1:
        return first
    if n_queries > n_keys:
        raise ValueError(
            f"q_offset=-1 says that the queries are the last tokens, but there are {n_queries} of "
            f"them and {n_keys} keys; pass the token of the first one."
        )
    return n_keys - n_queries


def _engine(impl: str | None, x: Operands) -> Callable[[Operands], tuple[Tensor, Tensor]]:
    device, dtype = x.q.device.type, x.q.dtype
    if impl is None:
        impl = pick(device, dtype)
    elif impl not in ENGINES:
        known = ", ".join(ENGINES)
        hint = suggest(impl, ENGINES, "")
        raise ValueError(f"impl must be one of {known} or None, got {impl=!r}. {hint}".strip())
    elif impl == "native" and (reason := native.why_not(device, dtype)):
        raise ValueError(f"impl='native' cannot do this call: {reason}; use impl='tiled'.")
    return ENGINES[impl]


def pick(device: str, dtype: torch.dtype, compiled: bool = True) -> str:
    """The name of the implementation that computes a call.

    compiled: ask also whether the kernel is built and right here, which may build it.
    """
    has_native = native.why_not(device, dtype) is None and (not compiled or native.ready())
    wanted = forced()
    if wanted in ENGINES and (has_native or wanted != "native"):
        return str(wanted)
    return "native" if has_native else "tiled"


def _check_blocks(q: Tensor, k: Tensor, blocks: Any, query_block: int) -> None:
    """Raise ValueError or TypeError where blocks cannot be what names them; no value is read."""
    if not isinstance(blocks, Tensor):
        raise TypeError(f"blocks must be an int tensor, got {type(blocks).__name__}.")
    check_dense("blocks", blocks)
    if blocks.dtype.is_floating_point or blocks.dtype.is_complex or blocks.dtype == torch.bool:
        raise ValueError(
            f"blocks must be of an int dtype, indices of blocks, got {blocks.dtype}; a bool mask "
            "of blocks becomes indices by .nonzero() or .topk()."
        )
    tiles = -(-q.shape[2] // query_block)
    shape, expected = tuple(blocks.shape), (*k.shape[:2], tiles)
    if blocks.ndim != 4 or shape[:3] != expected:
        raise ValueError(
            f"blocks must be (batch, kv_heads, ceil(n_queries / query_block), count) = ("
            f"{', '.join(map(str, expected))}, count) for query_block={query_block}, got {shape}."
        )
    if blocks.device != q.device:
        raise ValueError(f"blocks must be on the device of q, {q.device}, got {blocks.device}.")
