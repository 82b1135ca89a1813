"""h-transformer-1d 0.1.9, computed by foveal."""

from foveal.compat.h_transformer_1d import h_transformer_1d
from foveal.compat.h_transformer_1d.autoregressive_wrapper import AutoregressiveWrapper
from foveal.compat.h_transformer_1d.h_transformer_1d import *  # noqa: F403

__all__ = [*h_transformer_1d.__all__, "AutoregressiveWrapper"]
