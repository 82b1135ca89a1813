"""hourglass-transformer-pytorch 0.0.6, computed by foveal."""

from foveal.compat.hourglass_transformer_pytorch.autoregressive_wrapper import (
    AutoregressiveWrapper,
)
from foveal.compat.hourglass_transformer_pytorch.hourglass_transformer_pytorch import (
    Attention,
    FeedForward,
    HourglassTransformer,
    HourglassTransformerLM,
    LinearDownsample,
    LinearUpsample,
    NaiveDownsample,
    NaiveUpsample,
    PreNormResidual,
    Transformer,
    cast_tuple,
    default,
    exists,
    get_hourglass_transformer,
    pad_to_multiple,
)

__all__ = [
    "HourglassTransformerLM",
    "HourglassTransformer",
    "Transformer",
    "Attention",
    "FeedForward",
    "PreNormResidual",
    "NaiveDownsample",
    "NaiveUpsample",
    "LinearDownsample",
    "LinearUpsample",
    "get_hourglass_transformer",
    "pad_to_multiple",
    "AutoregressiveWrapper",
    "exists",
    "default",
    "cast_tuple",
]
