"""What torch has cut into shards: one rank's attention over its own shard would be wrong.

Nothing of torch.distributed is imported here. Where it is not loaded, nobody has cut anything.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

LOCAL = torch._C._nn.scaled_dot_product_attention
"""What torch's name for it means, unless somebody has put another function in its place."""

_NAMES = ("q", "k", "v", "bias", "key_mask", "sinks")
_ORDINARY = (Tensor, type(None), torch.nn.Parameter)
_CONTEXTS = (
    "torch.distributed.tensor.experimental._context_parallel._attention",
    "torch.distributed.tensor.experimental._attention",
)
_WAY = "foveal.parallel.attend(q, k, v, pattern, mesh) of the tokens of each rank, in their order"


def check_whole(*tensors: Any, names: tuple[str, ...] = _NAMES) -> None:
    """Raise ValueError where an argument, or the sequence that it is of, lies in shards."""
    for one in tensors:
        if type(one) not in _ORDINARY and _is_dtensor(one):
            name = names[next(i for i, other in enumerate(tensors) if other is one)]
            raise ValueError(
                f"{name} must be an ordinary tensor, got a DTensor of {one.placements}: where "
                f"tokens are sharded, call {_WAY}; of shards of the batch or of heads, attend to "
                "x.to_local() and put the result back with DTensor.from_local."
            )
    if functional.scaled_dot_product_attention is not LOCAL:
        check_context()


def check_context() -> None:
    """Raise ValueError inside of torch's context_parallel."""
    if in_context_parallel():
        raise ValueError(
            "attend sees one shard of the tokens inside of torch's context_parallel, which knows "
            f"scaled_dot_product_attention alone; leave the context and call {_WAY}."
        )


def in_context_parallel() -> bool:
    """Whether torch's context_parallel is at work, which gives each rank a shard of the tokens."""
    now = functional.scaled_dot_product_attention
    if now is LOCAL:
        return False
    modules = [sys.modules.get(name) for name in _CONTEXTS]
    return any(now in getattr(one, "_replaced_functions", ()) for one in modules)


# what torch.compiler.assume_constant_result does, which would import the compiler (a second)
in_context_parallel._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _is_dtensor(value: Any) -> bool:
    kind = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)
    return kind is not None and isinstance(value, kind)
