"""impl="flex": FlexAttention with an analytic block mask. CUDA; on CPU a cross-check."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from foveal.ops.bias import MASKED, WindowBias
from foveal.ops.flex.layout import layout
from foveal.ops.logits import capped, with_sinks
from foveal.patterns import Pattern
from foveal.patterns.tabled import Tabled

BLOCK = 128


def why_not(
    device: str, bias: str | None, bias_grad: bool, requires_grad: bool, dropout: bool
) -> str | None:
    """The reason why flex cannot do a call, or None when it can; see `Work` for the arguments."""
    if dropout:
        return "it has no dropout"
    if bias == "window":
        return "a WindowBias would have to be expanded"
    if bias_grad:
        return "the gradient of a bias is slow and not reproducible there"
    if device not in ("cpu", "cuda"):
        return f"FlexAttention does not run on {device}"
    if device == "cpu" and requires_grad:
        return "FlexAttention has no backward pass on CPU"
    if not torch.compiler.is_compiling() and _is_counted():
        return "torch's FlopCounterMode takes no FlexAttention"
    return None


def _is_counted() -> bool:
    """Whether operations are being counted: then torch 2.13 fails on what is not compiled."""
    modes = _get_current_dispatch_mode_stack()
    return any(type(one).__module__ == "torch.utils.flop_counter" for one in modes)


def flex_attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    bias: Tensor | WindowBias | None,
    key_mask: Tensor | None,
    scale: float,
    dropout_p: float,
    need_lse: bool = True,
    sinks: Tensor | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Shapes as in `attend`; a floating key_mask (batch, n_keys) is added to the logits.

    Returns (out, lse), whose lse tells the queries without keys and so is always computed. The
    caller has asked `why_not`: there is no dropout and no WindowBias.
    """
    assert not isinstance(bias, WindowBias)
    geometry = pattern.pattern if isinstance(pattern, Tabled) else pattern
    plan = layout(geometry, k.shape[2], BLOCK, str(q.device))
    if plan.order is not None:
        q, k, v = (x.index_select(2, plan.order) for x in (q, k, v))
    out, lse = _kernel(q.device.type)(
        q,
        k,
        v,
        score_mod=_score_mod(pattern, bias, key_mask, plan.order, q, softcap),
        block_mask=plan.block_mask,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
        return_lse=True,
    )
    # rows without keys: flex leaves lse = -inf (compiled) or NaN (eager); MASKED keys a huge one
    dead = ~(lse > MASKED / 2)
    out, lse = out.masked_fill(dead[..., None], 0.0), lse.masked_fill(dead, -torch.inf)
    if plan.place is not None:
        out, lse = out.index_select(2, plan.place), lse.index_select(2, plan.place)
    return with_sinks(out, lse, sinks)


@functools.lru_cache(maxsize=2)
def _kernel(device: str) -> Callable[..., tuple[Tensor, Tensor]]:
    from torch.nn.attention.flex_attention import flex_attention

    if device == "cpu":  # compiled flex returns no lse on CPU (torch 2.13)
        return _quiet(flex_attention)
    return torch.compile(flex_attention, dynamic=True)


def _quiet(kernel: Callable) -> Callable:
    """Eager FlexAttention warns that it is slow; as a cross-check that is what it is for."""
    import warnings

    @functools.wraps(kernel)
    def call(*args: Any, **kwargs: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return kernel(*args, **kwargs)

    return call


def _score_mod(
    pattern: Pattern,
    bias: Tensor | None,
    key_mask: Tensor | None,
    order: Tensor | None,
    q: Tensor,
    softcap: float | None,
) -> Callable | None:
    """What to do with a logit, as FlexAttention asks for it: one function for each combination."""
    parts: list[Callable] = []
    if softcap is not None:
        parts.append(lambda score, *at: capped(score, softcap))
    if bias is not None and pattern.biased_by_table:
        table = bias.expand(-1, q.shape[1], -1, -1)[0, :, 0]
        parts.append(_add_table(table, pattern, order, q.device))
    elif bias is not None:
        parts.append(_add_bias(bias, order))
    if key_mask is not None:
        parts.append(_add_key_mask(key_mask, order))
    if not parts:
        return None
    return functools.reduce(_then, parts)


def _then(first: Callable, second: Callable) -> Callable:
    return lambda score, *at: second(first(score, *at), *at)


def _add_table(
    table: Tensor, pattern: Pattern, order: Tensor | None, device: torch.device
) -> Callable:
    """table: (heads, rows)."""
    # where the rule has tables of its own, they lie on the device
    place = getattr(pattern.rule(device), "bias_place", pattern.bias_place)

    def add(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        if order is not None:
            i, j = order[i], order[j]
        return score + table[h, place(i, j)]

    return add


def _add_bias(bias: Tensor, order: Tensor | None) -> Callable:
    """bias: broadcasts to (batch, heads, n_queries, n_keys)."""
    many = [size > 1 for size in bias.shape]

    def add(score: Tensor, *at: Tensor) -> Tensor:
        b, h, i, j = at
        if order is not None:
            i, j = order[i], order[j]
        return score + bias[b * many[0], h * many[1], i * many[2], j * many[3]]

    return add


def _add_key_mask(key_mask: Tensor, order: Tensor | None) -> Callable:
    added = key_mask
    if not key_mask.is_floating_point():
        added = torch.zeros_like(key_mask, dtype=torch.float32).masked_fill(~key_mask, -torch.inf)
    if order is not None:
        added = added[:, order]

    def add(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score + added[b, j]

    return add
