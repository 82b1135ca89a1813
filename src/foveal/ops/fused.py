"""torch's fused attention, and what it does where its kernels have no derivative."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from foveal.ops.define import is_beyond_functions, refuse_second_derivatives

WAY_OUT = (
    "pass impl='reference' or impl='tiled' to attend, or compute under "
    "torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)"
)


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
    """`scaled_dot_product_attention`, whose derivatives are right or refused.

    Under torch.func and in forward mode its plain operations are taken; a backward pass that is to
    be differentiated raises, and says what to do.

    Args:
        q, k, v: (..., heads, length, head_dim), as torch takes them; so are the other arguments.

    Returns:
        (..., heads, n_queries, head_dim_v)
    """
    if is_beyond_functions(q, k, v, attn_mask):
        if attn_mask is not None and attn_mask.dtype == torch.bool:  # it would be added as numbers
            attn_mask = torch.zeros_like(attn_mask, dtype=q.dtype).masked_fill(
                ~attn_mask, -torch.inf
            )
        out, _ = torch.ops.aten._scaled_dot_product_attention_math(
            q, k, v, attn_mask, dropout_p, is_causal, None, scale=scale, enable_gqa=enable_gqa
        )
        return out
    if is_causal and scale is not None and scale <= 0:
        q, scale = q * scale, 1.0  # torch multiplies its -inf of the future, too: inf or NaN
    out = scaled_dot_product_attention(
        q, k, v, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )
    recorded = out.requires_grad and not torch.compiler.is_compiling()
    if recorded and "ScaledDotProduct" in type(out.grad_fn).__name__:
        refuse_second_derivatives(out, WAY_OUT)
    return out
