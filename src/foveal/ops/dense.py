"""impl="dense": scaled_dot_product_attention under the pattern's mask.

Products run in a precision that the device multiplies itself, sums in float32 at least. Where a
mask or the scores of all pairs would have to be written out and are many, the queries take turns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from foveal.common import by_example
from foveal.common.memo import sizes_of
from foveal.common.processor import fast_dtype
from foveal.ops.bias import TableBias, WindowBias, finite
from foveal.ops.define import is_beyond_functions
from foveal.ops.fused import fused_attention, make_differentiable
from foveal.ops.logits import shaped_attention, with_sink_key
from foveal.ops.masks import Mask, build, mask_of
from foveal.ops.reference import masked_attention, without_unread
from foveal.ops.work import Call, Prepared, Result, Work
from foveal.patterns import Full, Halo
from foveal.patterns.subclasses import is_a

MOST_PAIRS = 1 << 24
"""Numbers, of a mask or of scores, that are written out at one time."""


def refuses(work: Work) -> str | None:
    """The reason why dense attention cannot do a call, or None."""
    if work.pattern.pools:
        return "it cannot pool keys into levels"
    return "it returns no log-sum-exp, got return_lse=True" if work.lse else None


def written_out(work: Work) -> int:
    """How many numbers, of masks or scores, a call would hold at one time if done at once."""
    pairs = work.q[2] * work.k[2]
    unfused = work.dropout or work.softcap or work.bias_grad
    if unfused or work.bias in ("window", "table", "offsets"):
        return work.heads * pairs
    count = 1 if is_causal_or_all(work) else pairs * (work.pattern.heads or 1)
    if work.key_mask:
        rows = 1 if work.pattern.reads_all else work.q[2]
        count = max(count, work.q[0] * rows * work.k[2] * (work.pattern.heads or 1))
    if work.bias == "tensor":
        batch, heads, rows, _ = work.bias_shape
        batch, heads = (work.q[0] if work.key_mask else batch), max(heads, work.pattern.heads or 1)
        rows = rows if work.pattern.reads_all else work.q[2]
        count = max(count, batch * heads * rows * work.k[2])
    return count


def rows_at_once(work: Work) -> int:
    """How many examples of a call need not take turns."""
    return max(1, min(work.q[0], MOST_PAIRS // max(1, written_out(work.of_batch(1)))))


def is_causal_or_all(work: Work) -> bool:
    """Whether SDPA knows the pattern without a mask."""
    if not is_a(work.pattern, Full) or not work.plain:
        return work.pattern.reads_all
    return not work.pattern.causal or work.q[2] == work.k[2]


def run(call: Call) -> Result:
    """Dense attention; no log-sum-exp."""
    work = call.work
    dtype = work.dtype
    if dtype not in (torch.float32, torch.float64):
        dtype = fast_dtype(work.device.type, dtype)
    if call.bias is not None and (isinstance(call.bias, tuple) or call.bias.dtype != dtype):
        dtype = torch.promote_types(dtype, torch.float32)
    if dtype != work.dtype:
        q, k, v = call.q.to(dtype), call.k.to(dtype), call.v.to(dtype)
        call = call._replace(q=q, k=k, v=v)
    if work.plain and is_causal_or_all(work):
        out = _sdpa(call, None, is_causal=work.pattern.is_causal)
    elif not work.compiling and (count := written_out(work)) > MOST_PAIRS:
        out = _in_turns(call, -(-count // MOST_PAIRS))
    else:
        out = _rows(call, 0, work.q[2])
    return (out if dtype == work.dtype else out.to(work.dtype)), None


def prepared(work: Work) -> Prepared | None:
    """What `run` comes to, where that is one call of SDPA; for a scale that is positive."""
    dtypes, fits = (torch.float32, torch.float64), work.q[3] == work.v[3]
    if not work.plain or work.dtype not in dtypes or not fits or written_out(work) > MOST_PAIRS:
        return None
    mask, causal, grouped = None, False, work.q[1] != work.k[1]
    if is_causal_or_all(work):
        causal = work.pattern.is_causal
    else:
        found = mask_of(work.pattern, work.q[2], work.k[2], work.device, work.dtype)
        if found.dead is not None or found.unread is not None:
            return None
        mask = found.added
    return Fused(mask, causal, grouped, work.requires_grad), mask


@dataclass(frozen=True, slots=True)
class Fused:
    """A call that is one of SDPA, with a scale that is positive.

    Attributes:
        mask: (n_queries, n_keys) or (heads, n_queries, n_keys), 0 or -inf; None: no mask.
        grouped: fewer heads of keys than of queries.
        graded: gradients are asked for.
    """

    mask: Tensor | None
    causal: bool
    grouped: bool
    graded: bool

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, pattern: Any, key_mask: Any, scale: float
    ) -> Tensor:
        out = scaled_dot_product_attention(
            q, k, v, self.mask, 0.0, self.causal, scale=scale, enable_gqa=self.grouped
        )
        if self.graded:
            make_differentiable(out)
        return out


def by_definition(call: Call) -> tuple[Tensor, Tensor]:
    """A call without pooled keys by `masked_attention`: all scores of all pairs."""
    work = call.work
    return masked_attention(
        *call[1:4],
        work.pattern.mask(work.q[2], work.k[2], call.q.device),
        bias=_bias_of(call, 0, work.q[2]),
        key_mask=call.key_mask,
        scale=call.scale,
        dropout_p=call.dropout_p,
        softcap=call.softcap,
    )


def _bias_of(call: Call, first: int, count: int) -> Tensor | None:
    """What `count` queries from `first` on gain: broadcasts to (batch, heads, count, n_keys)."""
    work, bias = call.work, call.bias
    if isinstance(bias, TableBias):
        return bias.dense(work.pattern, count, work.k[2], first)
    if isinstance(bias, WindowBias):
        assert isinstance(work.pattern, Halo)
        bias = bias.dense(work.pattern, work.k[2])
    if bias is None or count == work.q[2] or bias.shape[2] == 1:
        return bias
    return bias[:, :, first : first + count]


def _sdpa(call: Call, mask: Tensor | None, is_causal: bool = False) -> Tensor:
    q, k, v, scale = call.q, call.k, call.v, call.scale
    if call.softcap is not None:
        sinks = None if call.sinks is None else call.sinks[:, None, None]
        options: Any = {"softcap": call.softcap, "sinks": sinks}
        return shaped_attention(q, k, v, mask, scale, call.dropout_p, **options)
    if call.sinks is not None:
        biased = call.bias is not None
        q, k, v, mask = with_sink_key(q, k, v, mask, scale, call.sinks, biased)
        scale = 1.0
    (_, heads, _, dim), (_, kv_heads, _, _), (*_, value_dim) = map(sizes_of, (q, k, v))
    grouped = heads != kv_heads
    if dim != value_dim and not call.dropout_p:  # fused kernels want them equal
        wide = max(dim, value_dim)
        q, k = (pad(x, (0, wide - dim)) if dim < wide else x for x in (q, k))
        v = pad(v, (0, wide - value_dim)) if value_dim < wide else v
    out = fused_attention(q, k, v, mask, call.dropout_p, is_causal, scale, grouped)
    return out[..., :value_dim] if value_dim < dim and not call.dropout_p else out


def _in_turns(call: Call, turns: int) -> Tensor:
    """Some queries after the other; the backward pass computes their masks and scores again."""
    from torch.utils.checkpoint import checkpoint

    count = call.work.q[2]
    size = max(1, count // turns)
    # torch.func knows no checkpoints
    again = call.work.requires_grad and not is_beyond_functions(call.q, call.k, call.v)
    parts = []
    for first in range(0, count, size):
        part, turn = (call, first, min(size, count - first)), by_example.held(_rows)
        parts.append(checkpoint(turn, *part, use_reentrant=False) if again else turn(*part))
    return torch.cat(parts, 2)


def _rows(call: Call, first: int, count: int) -> Tensor:
    """Attention of `count` queries from `first` on, of which some may have no key."""
    work, dead = call.work, None
    whole, bias = count == work.q[2], _bias_of(call, first, count)
    found = _mask(call, first, count)
    if not whole:
        call = call._replace(q=call.q[:, :, first : first + count])
    mask: Tensor | None
    if call.key_mask is None and bias is None and found is not None:
        mask, dead = found.added, found.dead
    else:
        mask, dead = _joined(call, found, bias)
    if call.key_mask is not None or (found is not None and found.unread is not None):
        call = _clean(call, found)
    out = _sdpa(call, mask)
    return out if dead is None else out.masked_fill(dead, 0.0)


def _mask(call: Call, first: int, count: int) -> Mask | None:
    """The pattern's mask of these queries; None where they read all keys."""
    work, device = call.work, call.q.device
    if work.pattern.reads_all:
        return None
    if count == work.q[2]:
        return mask_of(work.pattern, count, work.k[2], device, call.q.dtype)
    return build(work.pattern, first, count, work.k[2], device, call.q.dtype)


def _joined(
    call: Call, found: Mask | None, bias: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """What SDPA adds to the logits, or bool, and the queries without keys."""
    allowed = None if found is None else found.allowed
    if call.key_mask is not None:
        keys = call.key_mask[:, None, None, :]
        allowed = keys if allowed is None else allowed & keys
    if bias is None:
        if allowed is None:
            return None, None
        dead = ~allowed.any(-1, keepdim=True)
        return allowed | dead, dead
    bias = bias.expand(*bias.shape[:3], call.k.shape[2])
    visible = bias > -torch.inf if allowed is None else (bias > -torch.inf) & allowed
    dead = ~visible.any(-1, keepdim=True)
    # a row without keys reads all of them instead, and what it gets is thrown away
    added = finite(bias, call.q.dtype).masked_fill(~visible, -torch.inf).masked_fill(dead, 0.0)
    return added, dead


def _clean(call: Call, found: Mask | None) -> Call:
    """Zeros in the keys and values that nobody may read."""
    unread = None if found is None or found.unread is None else ~found.unread[..., None, :]
    k, v = without_unread(call.k, call.v, unread, call.key_mask)
    return call._replace(k=k, v=v)
