"""attend_varlen(): many sequences side by side in one tensor, without padding."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from foveal.common.checks import check_dense
from foveal.ops.attend import attend
from foveal.ops.checks import check_pattern
from foveal.ops.define import define
from foveal.ops.operator import unit_stride
from foveal.ops.spec import describe, rebuild
from foveal.ops.table import Alibi, Buckets, TableBias
from foveal.patterns import Packed, Pattern
from foveal.patterns.sizes import lengths_between

INTS = (torch.int32, torch.int64)


@overload
def attend_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    pattern: Pattern,
    *,
    bias: TableBias | Alibi | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    return_lse: Literal[False] = False,
    impl: str | None = None,
) -> Tensor: ...
@overload
def attend_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    pattern: Pattern,
    *,
    bias: TableBias | Alibi | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    return_lse: Literal[True],
    impl: str | None = None,
) -> tuple[Tensor, Tensor]: ...
def attend_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    pattern: Pattern,
    *,
    bias: TableBias | Alibi | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    return_lse: bool = False,
    impl: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """`attend` for sequences of any lengths that lie side by side, each of them on its own.

    What a batch of them would give, without padding: the pattern counts from 0 in every sequence.
    q, k and v are read where they lie. A sequence reads nothing of another one, NaN neither (not
    so with impl="dense", "reference" and "flex", which multiply by weights that are zero).

    Args:
        q: (queries, heads, head_dim), of all sequences.
        k: (keys, kv_heads, head_dim); kv_heads divides heads.
        v: (keys, kv_heads, head_dim_v).
        cu_seqlens_q: (sequences + 1,) int32 or int64, or a list: where each sequence begins among
            the queries, ascending from 0, and their number at the end. Lengths of 0 are allowed.
        cu_seqlens_k: the same of keys. Where a sequence has fewer queries than keys, these are
            its last ones, as in flash-attention from 2.1 on; where it has more, the first stand
            before all keys, which only patterns of distances bear.
        pattern: who attends to whom within a sequence. Of a Pyramid the sequences are computed
            one after the other.
        bias: `alibi(heads)` or a TableBias, by the places that tokens have in their own sequence:
            queries that are fewer than keys are its last ones.
        scale, softcap, sinks, return_lse, impl: as in `attend`.

    Returns:
        out (queries, heads, head_dim_v), zeros for a query without keys, and with `return_lse`
        the log-sum-exp (heads, queries).

    Raises:
        TypeError: pattern is not a Pattern, or q, k, v are no tensors.
        ValueError: shapes or borders do not fit; impl cannot do this call.

    Example:
        >>> import torch, foveal
        >>> from foveal import patterns as P
        >>> q = k = v = torch.randn(1000, 8, 64)
        >>> borders = torch.tensor([0, 300, 301, 1000], dtype=torch.int32)
        >>> foveal.attend_varlen(q, k, v, borders, borders, P.SlidingWindow(128)).shape
        torch.Size([1000, 8, 64])
    """
    check_pattern(pattern)
    _check(q, k, v)
    _check_bias(bias)
    options: dict[str, Any] = {"scale": scale, "softcap": softcap, "impl": impl}
    if torch.compiler.is_compiling():
        found: Any = _in_graph(q, k, v, cu_seqlens_q, cu_seqlens_k, pattern, sinks, bias, options)
    else:
        lengths = (
            _lengths("cu_seqlens_q", cu_seqlens_q, len(q)),
            _lengths("cu_seqlens_k", cu_seqlens_k, len(k)),
        )
        if len(lengths[0]) != len(lengths[1]):
            raise ValueError(
                "cu_seqlens_q and cu_seqlens_k must name as many sequences, got "
                f"{len(lengths[0])} and {len(lengths[1])}."
            )
        options |= {"sinks": sinks, "bias": bias, "return_lse": return_lse}
        run = _one_by_one if pattern.pools else _packed
        found = run(q, k, v, lengths, pattern, options)
    return found if return_lse else found[0]


Lengths = tuple[tuple[int, ...], tuple[int, ...]]
Found = tuple[Tensor, Tensor | None]


def _attend(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, options: dict[str, Any]) -> Found:
    """Of tensors (tokens, heads, features): out laid out like them, lse (heads, tokens)."""
    run: Any = attend
    found = run(*(x.transpose(0, 1)[None] for x in (q, k, v)), pattern, **options)
    out, lse = found if options["return_lse"] else (found, None)
    return out[0].transpose(0, 1), None if lse is None else lse[0]


def _check(q: Any, k: Any, v: Any) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, Tensor):
            raise TypeError(f"q, k and v must be tensors, got {name}={type(x).__name__}.")
        check_dense(name, x)
        if x.ndim != 3:
            raise ValueError(
                f"{name} must be (tokens, heads, head_dim), all sequences side by side, got "
                f"{tuple(x.shape)}; for (batch, heads, tokens, head_dim) use attend."
            )


def _check_bias(bias: Any) -> None:
    if bias is not None and not isinstance(bias, TableBias | Alibi):
        raise ValueError(
            f"bias must be alibi(heads) or a TableBias, got {type(bias).__name__}, which has no "
            "place for sequences of any lengths; call attend for each of them."
        )


def _lengths(name: str, borders: Any, tokens: int) -> tuple[int, ...]:
    check_dense(name, borders)
    if isinstance(borders, Tensor) and (borders.ndim != 1 or borders.dtype not in INTS):
        raise ValueError(
            f"{name} must be (sequences + 1,) of int32 or int64, got {borders.dtype} "
            f"{tuple(borders.shape)}."
        )
    found = lengths_between(name, borders)
    if sum(found) != tokens:
        raise ValueError(f"{name} must end with the number of tokens, {tokens}, got {sum(found)}.")
    return found


def _packed(
    q: Tensor, k: Tensor, v: Tensor, lengths: Lengths, pattern: Pattern, options: dict[str, Any]
) -> Found:
    """All sequences in one row."""
    queries, keys = lengths
    usual = all(pattern.num_queries(n) == m for m, n in set(zip(queries, keys, strict=True)))
    packed = Packed(pattern, keys, None if usual else queries)
    return _attend(q, k, v, packed, options)


def _one_by_one(
    q: Tensor, k: Tensor, v: Tensor, lengths: Lengths, pattern: Pattern, options: dict[str, Any]
) -> Found:
    """One sequence after the other: means of clusters would mix them."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    outs, lses = [q.new_zeros(0, q.shape[1], v.shape[2])], [q.new_zeros(q.shape[1], 0, dtype=wide)]
    parts = zip(q.split(lengths[0]), k.split(lengths[1]), v.split(lengths[1]), strict=True)
    for own in parts:
        if len(own[0]) > len(own[1]) > 0:
            raise ValueError(
                f"{pattern} has at most {len(own[1])} queries for the {len(own[1])} keys of a "
                f"sequence, got {len(own[0])}."
            )
        if len(own[0]):
            offset = -1 if len(own[0]) < len(own[1]) else 0
            out, lse = _attend(*own, pattern, options | {"q_offset": offset})
            outs.append(out)
            lses += [] if lse is None else [lse]
    return torch.cat(outs), torch.cat(lses, 1) if options["return_lse"] else None


# -- in a graph: an operator, for lengths are values ---------------------------------------------


def _in_graph(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    pattern: Pattern,
    sinks: Tensor | None,
    bias: TableBias | Alibi | None,
    options: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    if not (isinstance(cu_seqlens_q, Tensor) and isinstance(cu_seqlens_k, Tensor)):
        raise ValueError("cu_seqlens_q and cu_seqlens_k must be tensors in a compiled graph.")
    scale = q.shape[2] ** -0.5 if options["scale"] is None else options["scale"]
    table, rule = (None, [NO_BIAS]) if bias is None else _rule(bias)
    rest = (*describe(pattern), rule, scale, options["softcap"] or 0.0, options["impl"] or "")
    run: Any = _forward_op
    found = run(q, k, v, sinks, table, cu_seqlens_q, cu_seqlens_k, *rest)
    return found[0], found[1]


NO_BIAS, ALIBI, TABLE, BUCKETS = range(4)


def _rule(bias: TableBias | Alibi) -> tuple[Tensor, list[int]]:
    """A bias as an operator takes it: its tensor, and its rule in numbers."""
    if isinstance(bias, Alibi):
        return bias.slopes, [ALIBI]
    if isinstance(bias.rows, Buckets):
        return bias.table, [BUCKETS, bias.rows.max_distance, int(bias.rows.bidirectional)]
    if bias.rows is not None:
        raise ValueError(
            "bias must have rows=None or the buckets of TableBias.t5 in a compiled graph, got a "
            "function; call attend_varlen outside of the graph."
        )
    return bias.table, [TABLE]


def _bias(table: Tensor | None, rule: list[int]) -> TableBias | Alibi | None:
    """The bias that `_rule` was given."""
    if table is None:
        return None
    if rule[0] == ALIBI:
        return Alibi(table)
    return TableBias(table, Buckets(rule[1], bool(rule[2])) if rule[0] == BUCKETS else None)


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    table: Tensor | None,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    pattern: str,
    sizes: list[int],
    rule: list[int],
    scale: float,
    softcap: float,
    impl: str,
) -> tuple[Tensor, Tensor]:
    out, lse = attend_varlen(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        rebuild(pattern, sizes),
        bias=_bias(table, rule),
        scale=scale,
        softcap=softcap or None,
        sinks=sinks,
        return_lse=True,
        impl=impl or None,
    )
    return out.contiguous(), lse.contiguous()


def _fake_forward(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(*q.shape[:2], v.shape[2]), q.new_empty(q.shape[1], q.shape[0], dtype=dtype)


def _backward(
    grad_out: Tensor,
    grad_lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    table: Tensor | None,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    pattern: str,
    sizes: list[int],
    rule: list[int],
    scale: float,
    softcap: float,
    impl: str,
) -> list[Tensor]:
    """The forward pass once more, and its derivative."""
    with torch.enable_grad():
        tensors = (q, k, v, sinks, table)
        leaves = [None if x is None else x.detach().requires_grad_() for x in tensors]
        rest = (cu_seqlens_q, cu_seqlens_k, pattern, sizes, rule, scale, softcap, impl)
        again: Any = _forward
        results = again(*leaves, *rest)
        given = [x for x in leaves if x is not None]
        found = torch.autograd.grad(results, given, (unit_stride(grad_out), grad_lse))
    return [x.contiguous() for x in found]


def _fake_backward(grad_out: Tensor, grad_lse: Tensor, *rest: Any) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in rest[:5] if x is not None]


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs[:7])
    ctx.rest = inputs[7:]


def _gradients(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[Any, ...]:
    saved = ctx.saved_tensors
    grads = iter(_backward_op(grad_out, grad_lse, *saved, *ctx.rest))
    return (*(None if x is None else next(grads) for x in saved[:5]), *(None,) * 8)


_forward_op = define("varlen_forward", _forward, _fake_forward)
_backward_op = define("varlen_backward", _backward, _fake_backward)
torch.library.register_autograd("foveal::varlen_forward", _gradients, setup_context=_setup)
