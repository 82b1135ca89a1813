"""flex_attention(): the language of torch's FlexAttention, with gradients on every device."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from foveal.ops import autocast
from foveal.ops.attend import attend
from foveal.ops.checks import as_scale
from foveal.ops.define import in_mode_of, is_beyond_functions, is_fake
from foveal.ops.merge import merge
from foveal.ops.mods.checks import check_block_mask, check_mod, check_options, check_tensors
from foveal.ops.mods.engine import Asked, Result, attend_by_mod, working_dtype
from foveal.ops.mods.fast import patterns
from foveal.ops.mods.held import frozen
from foveal.ops.mods.plan import Part, Plan, plan, whole
from foveal.ops.mods.running import Watch, scores_of
from foveal.patterns import Full, Pattern

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import AuxRequest, BlockMask

Mod = Callable[..., Tensor]


def flex_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: Mod | None = None,
    block_mask: BlockMask | None = None,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    kernel_options: Any = None,
    *,
    return_aux: AuxRequest | None = None,
) -> Any:
    """torch's flex_attention, exact, and trained on every device.

    On CUDA it is torch's own, compiled. Elsewhere, where torch's has no backward pass: a BlockMask
    alone becomes a tile plan for the engines of `attend`; a `score_mod` runs and is differentiated
    a chunk of tiles at a time. No tensor has the size of queries times keys. The `mask_mod` is
    asked inside partial blocks only, once for a BlockMask that stays as it is; full blocks are
    taken as full, and blocks that are not listed as empty.

    Args:
        query: (batch, heads, n_queries, head_dim).
        key: (batch, kv_heads, n_keys, head_dim), or with one sequence for the whole batch.
        value: (batch, kv_heads, n_keys, head_dim_v).
        score_mod: (score, b, h, q_idx, kv_idx) -> score, all scalar tensors. What it captures gets
            its gradient: tensors of closures, globals, modules and partials alike.
        block_mask: who attends to whom; `Pattern.block_mask` makes one quickly.
        scale: factor of query key^T; head_dim ** -0.5 when None.
        enable_gqa: key and value may have fewer heads, each for a group of heads of query.
        return_lse: return also the log-sum-exp of the scores.
        kernel_options: hints to torch's kernels; elsewhere nothing depends on them.
        return_aux: an AuxRequest; its answer comes with out, and `max_scores` has no gradient.

    Returns:
        out (batch, heads, n_queries, head_dim_v), zeros for a query without keys; with
        `return_lse` also the natural log-sum-exp (batch, heads, n_queries), -inf for such a query,
        in float32 (float64 for float64); with `return_aux` an AuxOutput beside out.

    Raises:
        TypeError, ValueError: an argument, or what a mod returns, is not what it must be.
        RuntimeError: in the backward pass, what score_mod captures was changed meanwhile.

    Second derivatives and the transforms of torch.func are right, and hold every pair in memory.
    Under torch.compile it steps aside: the graph ends before it, and it runs as it does outside;
    with fullgraph=True that is an error, where torch's own compiled one serves for inference.

    Example:
        >>> import torch, foveal
        >>> slopes = torch.rand(8, requires_grad=True)
        >>> def alibi(score, b, h, q_idx, kv_idx):
        ...     return score - slopes[h] * (q_idx - kv_idx).abs()
        >>> q = k = v = torch.randn(1, 8, 100, 64)
        >>> foveal.flex_attention(q, k, v, alibi).sum().backward()
        >>> slopes.grad.shape
        torch.Size([8])
    """
    options = (score_mod, block_mask, scale, enable_gqa, return_lse, kernel_options)
    if isinstance(query, Tensor) and query.device.type == "cuda" and query.dtype != torch.float64:
        return _torchs()(query, key, value, *options, return_aux=return_aux)
    return _aside(query, key, value, *options, return_aux)


def _aside(*arguments: Any) -> Any:
    """`_apart`, which the compiler leaves alone where it is at work."""
    if "torch._dynamo" not in sys.modules:
        return _apart(*arguments)
    if not _LEFT_ALONE:
        _LEFT_ALONE.append(torch.compiler.disable(_apart))
    return _LEFT_ALONE[0](*arguments)


_LEFT_ALONE: list[Callable[..., Any]] = []

# what torch.compiler.disable does, which would import the compiler (a second)
_aside._torchdynamo_disable = True  # type: ignore[attr-defined]
_aside._torchdynamo_disable_msg = (  # type: ignore[attr-defined]
    "foveal.flex_attention runs outside of graphs where it is not torch's own (CUDA): leave out "
    "fullgraph=True, or compile torch's flex_attention, which knows inference alone there"
)


def _torchs() -> Callable[..., Any]:
    from torch.nn.attention import flex_attention as theirs

    plain: Any = theirs.flex_attention
    return plain if torch.compiler.is_compiling() else _compiled(plain)


@functools.lru_cache(maxsize=1)
def _compiled(plain: Any) -> Callable[..., Any]:
    return torch.compile(plain)


def _apart(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: Mod | None,
    block_mask: BlockMask | None,
    scale: float | None,
    enable_gqa: bool,
    return_lse: bool,
    kernel_options: Any,
    return_aux: AuxRequest | None,
) -> Any:
    """The call off CUDA, no part of any graph."""
    check_options(kernel_options, return_lse, return_aux)
    check_tensors(query, key, value, enable_gqa)
    if score_mod is not None:
        check_mod("score_mod", score_mod, ("score", "b", "h", "q_idx", "kv_idx"))
    if block_mask is not None:
        block_mask = check_block_mask(block_mask, query, key)
    if isinstance(scale, Tensor):
        raise TypeError(
            "scale must be a number, got a tensor, which would get no gradient; scale query by "
            "it, or use .item()."
        )
    factor = query.shape[3] ** -0.5 if scale is None else as_scale(scale)
    want_top = return_aux is not None and bool(return_aux.max_scores)
    want_lse = return_lse or (return_aux is not None and bool(return_aux.lse))
    device = query.device.type
    if autocast.is_on(device):
        query, key, value = autocast.lowered(query, key, value)
    with autocast.off(device):
        if device == "meta":
            found = _shapes(query, key, value, None)
        elif not (query.numel() and key.numel()):
            found = _without_mods(query, key, value, None, factor, want_lse)
        else:
            key, value = (x.expand(len(query), -1, -1, -1) for x in (key, value))
            want = (want_lse, want_top)
            found = _computed(query, key, value, score_mod, block_mask, factor, want)
    return _returned(found, return_lse, return_aux, want_lse)


def _shapes(query: Tensor, key: Tensor, value: Tensor, score_mod: Mod | None) -> Result:
    """What has no values, but a gradient to all that has one: for fake tensors and on meta."""
    seen = query.sum(-1) + key.sum() + value.sum()
    if score_mod is not None:
        zero = torch.zeros(1, dtype=torch.int64, device=query.device)
        score = query.new_zeros((1,) * 5, dtype=working_dtype(query))
        with Watch():
            seen = seen + scores_of(score_mod, score, zero, zero, zero[None], zero[None]).sum()
    out = seen[..., None].expand(*seen.shape, value.shape[3]).to(query.dtype)
    lse = seen.to(working_dtype(query))
    return out.contiguous(), lse, lse.detach().clone()


def _returned(found: Result, return_lse: bool, aux: AuxRequest | None, want_lse: bool) -> Any:
    out, lse, top = found
    if aux is not None:
        from torch.nn.attention.flex_attention import AuxOutput

        return out, AuxOutput(lse if want_lse else None, top if aux.max_scores else None)
    return (out, lse) if return_lse else out


# -- how it is computed -------------------------------------------------------------------------


def _computed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    score_mod: Mod | None,
    block_mask: BlockMask | None,
    scale: float,
    want: tuple[bool, bool],
) -> Result:
    """By the engines of `attend` where nothing but a mask shapes the weights, else by chunks.

    want: whether the log-sum-exp and the largest score are asked for.
    """
    if is_fake(q) and (score_mod, block_mask) != (None, None):
        with in_mode_of(q):
            return _shapes(q, k, v, score_mod)
    lengths, made = (q.shape[2], k.shape[2]), None
    if block_mask is not None:
        made = plan(block_mask, lengths, q.shape[0], q.shape[1], q.device)
    if score_mod is None and not want[1]:
        if made is None:
            return _without_mods(q, k, v, None, scale, want[0])
        by_part = [patterns(made, part) for part in made.parts]
        if None not in by_part:
            return _without_mods(q, k, v, made, scale, want[0])
    asked = Asked(made or whole(lengths), frozen(score_mod), scale, want[0])
    return attend_by_mod(asked, q, k, v, is_beyond_functions(q, k, v))


def _without_mods(
    q: Tensor, k: Tensor, v: Tensor, made: Plan | None, scale: float, need_lse: bool
) -> Result:
    if made is None:
        out, lse = _by_patterns(q, k, v, (Full(),), scale, need_lse)
        return out, lse, lse
    by_batch: dict[Rows, list[Part]] = {}
    for part in made.parts:
        by_batch.setdefault(part.batch, []).append(part)
    groups = list(by_batch)
    split = (_split(x, groups, 0) for x in (q, k, v))
    each = zip(*split, by_batch.values(), strict=True)
    found = [_by_head(q, k, v, parts, made, scale, need_lse) for q, k, v, parts in each]
    outs, lses = zip(*found, strict=True)
    out, lse = _joined(outs, groups, 0), _joined(lses, groups, 0)
    return out, lse, lse


def _by_head(
    q: Tensor, k: Tensor, v: Tensor, parts: list[Part], made: Plan, scale: float, need_lse: bool
) -> tuple[Tensor, Tensor]:
    """Sequences that read the same, head by head where these differ."""
    groups = [part.heads for part in parts]
    if groups != [None]:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    split = (_split(x, groups, 1) for x in (q, k, v))
    found = []
    for own_q, own_k, own_v, part in zip(*split, parts, strict=True):
        each = patterns(made, part) or ()
        found.append(_by_patterns(own_q, own_k, own_v, each, scale, need_lse))
    outs, lses = zip(*found, strict=True)
    return _joined(outs, groups, 1), _joined(lses, groups, 1)


def _by_patterns(
    q: Tensor, k: Tensor, v: Tensor, each: tuple[Pattern, ...], scale: float, need_lse: bool
) -> tuple[Tensor, Tensor]:
    """Attention over the keys of all patterns together; without `need_lse` lse is anything."""
    if len(each) == 1 and not need_lse:
        out = attend(q, k, v, each[0], scale=scale)
        return out, out[..., 0].detach()
    return merge([attend(q, k, v, one, scale=scale, return_lse=True) for one in each])


Rows = tuple[int, ...] | None


def _split(x: Tensor, groups: list[Rows], dim: int) -> tuple[Tensor, ...]:
    """x by groups of its rows; its gradient is put together once."""
    if groups == [None]:
        return (x,)
    order = [row for rows in groups for row in rows or ()]
    if order != sorted(order):
        x = x.index_select(dim, torch.tensor(order, device=x.device))
    return x.split([len(rows or ()) for rows in groups], dim)


def _joined(parts: tuple[Tensor, ...], groups: list[Rows], dim: int) -> Tensor:
    """What `_split` took apart."""
    if groups == [None]:
        return parts[0]
    order = torch.tensor([row for rows in groups for row in rows or ()], device=parts[0].device)
    return torch.cat(parts, dim).index_select(dim, order.argsort())
