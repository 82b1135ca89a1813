"""natten's dense attention, and the merging of parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn.functional import pad

from foveal.integrations.natten.checks import check_rank, check_tuning
from foveal.ops import attend, attend_varlen, merge
from foveal.patterns import Full


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    is_causal: bool = False,
    scale: float | None = None,
    seqlens_Q: Tensor | None = None,  # noqa: N803 - natten's names
    seqlens_KV: Tensor | None = None,  # noqa: N803
    cumulative_seqlen_Q: Tensor | None = None,  # noqa: N803
    cumulative_seqlen_KV: Tensor | None = None,  # noqa: N803
    max_seqlen_Q: int | None = None,  # noqa: N803
    max_seqlen_KV: int | None = None,  # noqa: N803
    backend: str | None = None,
    q_tile_size: int | None = None,
    kv_tile_size: int | None = None,
    backward_q_tile_size: int | None = None,
    backward_kv_tile_size: int | None = None,
    backward_kv_splits: int | None = None,
    backward_use_pt_reduction: bool = False,
    run_persistent_kernel: bool = True,
    kernel_schedule: Any = None,
    torch_compile: bool = False,
    return_lse: bool = False,
    *,
    key_mask: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Dense attention, of a batch or of sequences that lie side by side in a batch of one.

    Args:
        query: (batch, queries, heads, head_dim).
        key: (batch, keys, kv_heads, head_dim); kv_heads divides heads.
        value: (batch, keys, kv_heads, head_dim_v).
        is_causal: query i reads keys 0 to i.
        scale: factor of q k^T; head_dim ** -0.5 when None.
        seqlens_Q, seqlens_KV: (sequences,) lengths of sequences side by side.
        cumulative_seqlen_Q, cumulative_seqlen_KV: (sequences + 1,) their borders, instead.
        max_seqlen_Q, max_seqlen_KV: the longest of them, which nothing here asks for.
        backend, q_tile_size, kv_tile_size, backward_q_tile_size, backward_kv_tile_size,
            backward_kv_splits, backward_use_pt_reduction, run_persistent_kernel, kernel_schedule,
            torch_compile: choose one of natten's kernels, and change nothing.
        return_lse: return the log-sum-exp (batch, queries, heads) as well.
        key_mask: (batch, keys) bool, True = a real token; not for sequences side by side.

    Returns:
        (batch, queries, heads, head_dim_v), and with return_lse the log-sum-exp.

    Raises:
        TypeError: what must be a tensor is none.
        ValueError: shapes or options do not fit.
    """
    check_tuning(backend, kernel_schedule, None)
    for name, x in (("query", query), ("key", key), ("value", value)):
        check_rank(name, x, 4, "batch, tokens, heads, head_dim")
    borders = [
        _borders(seqlens_Q, cumulative_seqlen_Q),
        _borders(seqlens_KV, cumulative_seqlen_KV),
    ]
    if borders[0] is not None or borders[1] is not None:
        if key_mask is not None:
            raise ValueError("key_mask must be None where lengths of sequences are given.")
        found = _side_by_side(query, key, value, borders, is_causal, scale)
    else:
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        pattern = Full(causal=is_causal)
        pair = attend(q, k, v, pattern, scale=scale, key_mask=key_mask, return_lse=True)
        found = pair[0].transpose(1, 2), pair[1].transpose(1, 2)
    return found if return_lse else found[0]


def merge_attentions(
    outputs: Sequence[Tensor],
    lse_tensors: Sequence[Tensor],
    torch_compile: bool = True,
    use_autograd_fix: bool = True,
) -> tuple[Tensor, Tensor]:
    """Attention over the keys of all parts together, from the attention over each of them.

    Gradients are those of the formula, also where a part is used elsewhere: natten's
    `use_autograd_fix`, which overwrites its inputs, is not needed, and nothing is compiled.

    Args:
        outputs: (batch, tokens, heads, head_dim) each, two or more.
        lse_tensors: (batch, tokens, heads) each.
        torch_compile, use_autograd_fix: change nothing.

    Returns:
        the output and the log-sum-exp of the whole.

    Raises:
        ValueError: fewer than two parts, or shapes that differ.
    """
    if len(outputs) < 2 or len(outputs) != len(lse_tensors):
        raise ValueError(
            "merge_attentions takes two or more outputs and as many lse_tensors, got "
            f"{len(outputs)} and {len(lse_tensors)}."
        )
    return merge(list(zip(outputs, lse_tensors, strict=True)))


def _borders(lengths: Any, borders: Any) -> Tensor | None:
    """Where sequences begin and end, from their lengths or as it was given."""
    if lengths is None:
        return borders
    if borders is not None:
        raise ValueError("give seqlens or cumulative_seqlen, not both.")
    if not isinstance(lengths, Tensor) or lengths.ndim != 1:
        raise ValueError(f"seqlens must be a tensor (sequences,), got {lengths!r:.80}.")
    return pad(lengths.cumsum(0), (1, 0))


def _side_by_side(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    borders: list[Tensor | None],
    is_causal: bool,
    scale: float | None,
) -> tuple[Tensor, Tensor]:
    """Sequences in a batch of one, each on its own."""
    ours, theirs = borders
    if ours is None or theirs is None:
        raise ValueError("lengths of sequences must be given of queries and of keys, got one.")
    if query.shape[0] != 1 or key.shape[0] != 1:
        raise ValueError(
            "sequences of given lengths lie side by side in a batch of one, got query "
            f"{tuple(query.shape)}, key {tuple(key.shape)}."
        )
    if is_causal and not bool((ours == theirs).all()):
        raise ValueError(
            "is_causal needs as many queries as keys in each sequence; use foveal.attend_varlen, "
            "where the queries are the last tokens of theirs."
        )
    pattern = Full(causal=is_causal)
    out, lse = attend_varlen(
        query[0], key[0], value[0], ours, theirs, pattern, scale=scale, return_lse=True
    )
    return out[None], lse.T[None]
