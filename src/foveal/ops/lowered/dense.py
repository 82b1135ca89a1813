"""Every query beside every key, for patterns that leave most pairs in place."""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

from foveal.ops.lowered.call import Lowered, Part, allowed, gained, softmax
from foveal.ops.lowered.state import are_equal
from foveal.patterns import Full
from foveal.patterns.subclasses import is_a


def dense(call: Lowered) -> Part:
    """The call under a mask of all pairs, written by the pattern's own definition."""
    q, k, v = call.q, call.k, call.v
    shaped = (call.bias, call.key_mask, call.sinks, call.softcap)
    if all(one is None for one in shaped) and not call.lse and is_a(call.pattern, Full):
        causal = call.pattern.is_causal
        if not causal or are_equal(q.shape[2], k.shape[2]):
            scale = call.scale
            if scale <= 0:  # torch multiplies its -inf of the future, too
                q, scale = q * scale, 1.0
            return scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale), None
    q_idx = torch.arange(q.shape[2], device=q.device)[None]
    k_idx = torch.arange(k.shape[2], device=q.device)[None]
    mask, bias = allowed(call, q_idx, k_idx, None), gained(call, q_idx, k_idx)
    dead = call.may_be_dead or not are_equal(q.shape[2], k.shape[2])
    return softmax(call, q[:, :, None], k[:, :, None], v[:, :, None], mask, bias, dead)
