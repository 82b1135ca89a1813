"""attn_implementation="foveal": the attention of every model of transformers, by `attend`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from foveal.integrations.transformers.masks import PatternMask, foveal_mask
from foveal.integrations.transformers.rules import ALL, PAST, Rule, Selection
from foveal.ops.attend import attend
from foveal.ops.logits import shaped_attention
from foveal.patterns import Pattern

NAME = "foveal"
FOREIGN = {
    "indices": "keys that are chosen for each query",
    "block_indices": "blocks of keys that are chosen for each query",
    "sinks": "a sink of each query",
}
"""What some models pass to the attention, and foveal does not know there."""

SHORT = 64
"""Tokens up to which a mask of keys is computed densely."""


def register() -> None:
    """Make `attn_implementation="foveal"` known to transformers; once is enough."""
    AttentionInterface.register(NAME, foveal_attention)
    AttentionMaskInterface.register(NAME, foveal_mask)


def foveal_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What a layer of transformers asks for: see its `AttentionInterface`.

    Args:
        query: (batch, heads, num_queries, head_dim).
        key, value: (batch, kv_heads, num_keys, head_dim).
        attention_mask: what `foveal_mask` gave; or any mask (batch or 1, heads or 1, num_queries,
            num_keys), bool or added; None: all keys, or the past where the layer is causal.
        softcap, s_aux: as `attend` has softcap and sinks.
        position_bias: added to the logits.

    Returns:
        (batch, num_queries, heads, head_dim), and no weights.

    Raises:
        ValueError: the model asks for weights, or for what is computed by no implementation here.
    """
    _refuse(kwargs)
    if len(query) != len(key):  # queries that are learned, the same for all rows
        batch = max(len(query), len(key))
        query, key, value = (x.expand(batch, -1, -1, -1) for x in (query, key, value))
    options: dict[str, Any] = {"scale": scaling, "softcap": softcap, "sinks": s_aux}
    options["dropout_p"] = float(dropout) if module.training else 0.0
    if attention_mask is None:
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        pattern = _default(query, key, bool(causal))
        out = attend(query, key, value, pattern, bias=position_bias, **options)
        return out.transpose(1, 2).contiguous(), None
    _check(attention_mask, query, key)
    rule = attention_mask.rule if isinstance(attention_mask, PatternMask) else None
    if isinstance(rule, Rule) and not _is_short(rule, query, key, options):
        out = _by_rule(rule, query, key, value, position_bias, options)
    elif isinstance(rule, Selection):
        out = _by_selection(rule, query, key, value, position_bias, options)
    else:
        out = _by_mask(attention_mask, query, key, value, position_bias, options)
    return out.transpose(1, 2).contiguous(), None


def _is_short(rule: Rule, query: Tensor, key: Tensor, options: dict[str, Any]) -> bool:
    """Whether to lay out a call with a key mask takes longer than to compute it densely."""
    if rule.key_mask is None or query.shape[2] > SHORT or key.shape[2] > SHORT:
        return False
    return _is_plain(query, options)


def _refuse(kwargs: dict[str, Any]) -> None:
    for name, what in FOREIGN.items():
        if kwargs.get(name) is not None:
            raise ValueError(
                f"attn_implementation='{NAME}' does not know {what}, which this model passes as "
                f"{name}; use 'eager' for it."
            )
    if kwargs.get("output_attentions"):
        raise ValueError(
            f"attn_implementation='{NAME}' has no weights to return, got output_attentions=True; "
            "use model.set_attn_implementation('eager') for them."
        )


def _default(query: Tensor, key: Tensor, causal: bool) -> Pattern:
    """Without a mask: as transformers has it with scaled_dot_product_attention.

    Raises:
        ValueError: queries that are causal and fewer than the keys, of which nobody knows where
            they stand.
    """
    num_queries, num_keys = query.shape[2], key.shape[2]
    causal = causal and num_queries > 1
    if causal and num_queries != num_keys:
        raise ValueError(
            f"attn_implementation='{NAME}' needs the mask of a causal layer with {num_queries} "
            f"queries and {num_keys} keys, got attention_mask=None: it cannot know which of the "
            "keys the queries are."
        )
    return PAST if causal else ALL


def _check(mask: Tensor, query: Tensor, key: Tensor) -> None:
    """Raise unless a mask is one of these queries and keys."""
    wanted = (len(query), query.shape[1], query.shape[2], key.shape[2])
    shape = tuple(mask.shape)
    fits = len(shape) == 4 and all(
        have in (1, want) for have, want in zip(shape, wanted, strict=True)
    )
    if not fits or (isinstance(mask, PatternMask) and shape[2:] != wanted[2:]):
        raise ValueError(
            "attention_mask must broadcast to (batch, heads, num_queries, num_keys) = "
            f"{wanted}, got {shape}."
        )


def _by_rule(
    rule: Rule, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, options: dict[str, Any]
) -> Tensor:
    if rule.num_keys < k.shape[2]:
        k, v = k[:, :, : rule.num_keys], v[:, :, : rule.num_keys]
        bias = None if bias is None else bias[..., : rule.num_keys]
    if len(rule.patterns) == 1:
        return attend(
            q,
            k,
            v,
            rule.patterns[0],
            bias=bias,
            key_mask=rule.key_mask,
            q_offset=rule.first,
            **options,
        )
    found = []
    for row, pattern in enumerate(rule.patterns):
        own = slice(row, row + 1)
        one = attend(
            q[own],
            k[own],
            v[own],
            pattern,
            bias=bias if bias is None or len(bias) == 1 else bias[own],
            key_mask=None if rule.key_mask is None else rule.key_mask[own],
            q_offset=rule.first,
            **options,
        )
        found.append(one)
    return torch.cat(found)


def _by_selection(
    rule: Selection, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, options: dict[str, Any]
) -> Tensor:
    """One query, over the stretch of keys that it reads."""
    if rule.high - rule.low < k.shape[2]:
        k, v = (x[:, :, rule.low : rule.high] for x in (k, v))
        bias = None if bias is None else bias[..., rule.low : rule.high]
    if bias is not None or not _is_fast(q):
        return attend(q, k, v, ALL, bias=bias, key_mask=rule.mask, **options)
    mask = None if rule.mask is None else rule.mask[:, None, None]
    # heads that share their keys are so many queries of one head
    packed = q.reshape(len(q), k.shape[1], -1, q.shape[3])
    if options["softcap"] is options["sinks"] is None:
        out = scaled_dot_product_attention(
            packed, k, v, mask, options["dropout_p"], scale=options["scale"]
        )
    else:
        out = _shaped(packed, k, v, mask, **options)
    return out.reshape(*q.shape[:3], v.shape[3])


def _shaped(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float | None,
    softcap: float | None,
    sinks: Tensor | None,
    dropout_p: float,
) -> Tensor:
    """A few queries, with what no fused kernel knows; rows without keys give zeros."""
    dead = None
    if mask is not None:
        dead = ~mask.any(-1, keepdim=True)
        mask = mask | dead
    if sinks is not None:
        sinks = sinks.view(1, k.shape[1], -1, 1)
    out = shaped_attention(q, k, v, mask, scale, dropout_p, softcap=softcap, sinks=sinks)
    return out if dead is None else out.masked_fill(dead, 0.0)


def _by_mask(
    mask: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, options: dict[str, Any]
) -> Tensor:
    """Any mask, bool or added."""
    if isinstance(mask, PatternMask):
        mask = mask.allowed()
    if mask.dtype not in (torch.bool, q.dtype):
        mask = mask.to(q.dtype)
    if bias is None and _is_plain(q, options):
        grouped = q.shape[1] != k.shape[1]
        return scaled_dot_product_attention(
            q, k, v, mask, options["dropout_p"], scale=options["scale"], enable_gqa=grouped
        )
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -torch.inf)
    return attend(q, k, v, ALL, bias=mask if bias is None else mask + bias, **options)


def _is_plain(q: Tensor, options: dict[str, Any]) -> bool:
    """Whether torch's own attention does it, and not in a precision that is emulated."""
    return options["softcap"] is options["sinks"] is None and _is_fast(q)


def _is_fast(q: Tensor) -> bool:
    """Whether the processor multiplies these numbers itself."""
    return q.is_cuda or q.dtype in (torch.float32, torch.float64)
