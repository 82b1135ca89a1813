"""The reversible layers of h-transformer-1d."""

from foveal.compat.reversible import (
    Deterministic,
    ReversibleBlock,
    ReversibleSequence,
    SequentialSequence,
    layer_drop,
    route_args,
)

__all__ = [
    "route_args",
    "layer_drop",
    "Deterministic",
    "ReversibleBlock",
    "SequentialSequence",
    "ReversibleSequence",
]
