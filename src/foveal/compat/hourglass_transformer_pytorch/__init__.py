"""hourglass-transformer-pytorch 0.0.6, computed by foveal."""

from foveal.compat.hourglass_transformer_pytorch import hourglass_transformer_pytorch
from foveal.compat.hourglass_transformer_pytorch.autoregressive_wrapper import (
    AutoregressiveWrapper,
)
from foveal.compat.hourglass_transformer_pytorch.hourglass_transformer_pytorch import *  # noqa: F403

__all__ = [*hourglass_transformer_pytorch.__all__, "AutoregressiveWrapper"]
