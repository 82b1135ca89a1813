"""h-transformer-1d 0.1.9, computed by foveal."""

from foveal.compat.h_transformer_1d.autoregressive_wrapper import AutoregressiveWrapper
from foveal.compat.h_transformer_1d.h_transformer_1d import (
    CausalHAttention1D,
    FeedForward,
    HAttention1D,
    HTransformer1D,
    PreNorm,
    PreShiftTokens,
    ReversibleSequence,
    SequentialSequence,
    cast_for_op,
    exists,
    flip_every_two,
    masked_aggregate,
    shift,
)

__all__ = [
    "HTransformer1D",
    "HAttention1D",
    "CausalHAttention1D",
    "FeedForward",
    "PreNorm",
    "PreShiftTokens",
    "ReversibleSequence",
    "SequentialSequence",
    "AutoregressiveWrapper",
    "exists",
    "masked_aggregate",
    "shift",
    "cast_for_op",
    "flip_every_two",
]
