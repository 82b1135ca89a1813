"""torch's fused attention, and what it does where its kernels have no derivative."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from foveal.common import by_example
from foveal.ops.define import is_beyond_functions
from foveal.ops.logits import shaped_attention

Gradients = tuple[Tensor | None, ...]
grad_enabled = torch.is_grad_enabled


def fused_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`scaled_dot_product_attention`, which has every derivative.

    Under torch.func and in forward mode its plain operations are taken; so are they in a backward
    pass that is to be differentiated (create_graph=True). Where weights were dropped, and within a
    checkpoint, that raises RuntimeError, which says what to do.

    Args:
        q, k, v: (..., heads, length, head_dim), as torch takes them; so are the other arguments.

    Returns:
        (..., heads, n_queries, head_dim_v)
    """
    if dropout_p and by_example.serves(q.shape[0]):
        if is_causal:
            attn_mask = torch.ones(
                q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device
            ).tril()
        return shaped_attention(q, k, v, attn_mask, scale, dropout_p)
    if is_beyond_functions(q, k, v, attn_mask):
        return _plainly(q, k, v, attn_mask, dropout_p, is_causal, scale)
    if is_causal and scale is not None and scale <= 0:
        q, scale = q * scale, 1.0  # torch multiplies its -inf of the future, too: inf or NaN
    out = scaled_dot_product_attention(
        q, k, v, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )
    if out.requires_grad and not torch.compiler.is_compiling():
        make_differentiable(out)
    return out


def make_differentiable(out: Tensor) -> None:
    """Give what `scaled_dot_product_attention` gave a second derivative, if it has none.

    Its gradient must be asked for.
    """
    # what out.register_hook does, in a third of the time
    out.grad_fn._register_hook_dict(_HOOKS)  # type: ignore[union-attr]


def _before(grad: Tensor) -> None:
    """Hook of the output: looks on when the gradients are to be differentiated."""
    if not grad_enabled():  # no create_graph=True
        return
    node: Any = torch._C._current_autograd_node()
    if "ScaledDotProduct" not in type(node).__name__:  # plain operations, which can be
        return

    def once(found: Gradients, grads: Gradients) -> Gradients | None:
        handle.remove()
        return _differentiable(found, grads)

    handle = node.register_hook(once)


_HOOKS: Any = torch.empty(0, device="cpu")
"""What is registered is the hooks of a tensor."""

_HOOKS._backward_hooks = OrderedDict({0: _before})


def _plainly(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
) -> Tensor:
    if attn_mask is not None and attn_mask.dtype == torch.bool:  # it would be added as numbers
        attn_mask = torch.zeros_like(attn_mask, dtype=q.dtype).masked_fill(~attn_mask, -torch.inf)
    out, _ = torch.ops.aten._scaled_dot_product_attention_math(
        q, k, v, attn_mask, dropout_p, is_causal, None, scale=scale, enable_gqa=True
    )
    return out


def _differentiable(found: Gradients, grads: Gradients) -> Gradients | None:
    """Hook of a fused kernel's backward: gradients that have derivatives, where they are wanted.

    What it needs it takes from the node, as the kernel does: to hold tensors of its own would
    undo checkpoints.
    """
    if not torch.is_grad_enabled():
        return None
    node: Any = torch._C._current_autograd_node()
    if node._saved_dropout_p:
        raise _refusal("with dropout")
    try:
        mask = getattr(node, "_saved_attn_mask", getattr(node, "_saved_attn_bias", None))
        given = (node._saved_query, node._saved_key, node._saved_value, mask)
    except RuntimeError as error:  # a checkpoint gives what was saved only once
        raise _refusal("within torch.utils.checkpoint") from error
    # views, so that q, k and v may be one tensor and have gradients of their own
    own: list[Any] = [None if x is None else x.view_as(x) for x in given]
    q, k, v, mask = own
    out = _plainly(q, k, v, mask, 0.0, node._saved_is_causal, node._saved_scale)
    needed = [at for at, grad in enumerate(found) if grad is not None]
    wanted = torch.autograd.grad(out, [own[at] for at in needed], grads[0], create_graph=True)
    of = dict(zip(needed, wanted, strict=True))
    return tuple(of.get(at) for at in range(len(found)))


def _refusal(case: str) -> RuntimeError:
    return RuntimeError(
        f"attention {case} has no second derivative in this implementation; pass impl='reference' "
        "to attend, or compute under "
        "torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)."
    )
