"""Many tokens at once over a cache: each reads what is held, and those before it among the new."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from foveal.ops import TableBias, attend
from foveal.ops.offset import brought_near
from foveal.ops.table import Alibi
from foveal.patterns import Part, Pattern
from foveal.patterns.gathered import Gathered
from foveal.patterns.needs import runs_in

Relate = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(queries, keys, places of the queries, places of the keys) -> queries and keys whose product
knows how far apart they stand."""


def attend_held(
    q: Tensor,
    kv: Tensor,
    pattern: Pattern,
    first: int,
    held: Tensor,
    scale: float | None,
    key_mask: Tensor | None,
    bias: TableBias | Alibi | None,
    relate: Relate | None,
    sinks: Tensor | None,
    softcap: float | None,
) -> Tensor:
    """Attention of the tokens from position `first` on.

    Args:
        q: (batch, heads, tokens, head_dim).
        kv: (2, batch, kv_heads, keys, head_dim), of the tokens `held`, then of the new ones.
        held: (keys - tokens,) their positions, ascending.
        key_mask: (batch, first + tokens) bool, True = real.
        sinks: (heads,) or None.

    Returns:
        (batch, heads, tokens, head_dim)
    """
    k, v = kv
    count = q.shape[2]
    places = torch.cat((held, torch.arange(first, first + count, device="cpu")))
    part: Pattern
    if len(held) and int(places[-1]) - int(held[0]) + 1 != len(places):
        part = Gathered(pattern, first, count, runs_in(places), first + count)
    else:
        part = brought_near(Part(pattern, first, count, int(places[0])), bias)
    wide, given = q.to(k.dtype), None if key_mask is None else key_mask[:, places.to(q.device)]
    if relate is not None:
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        wide, k = relate(wide, k, places[len(held) :].to(q.device), places.to(q.device))
    options: Any = {"bias": bias, "key_mask": given, "scale": scale}
    out = attend(wide, k, v, part, sinks=sinks, softcap=softcap, **options)
    return out.to(q.dtype)
