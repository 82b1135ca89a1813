"""halonet-pytorch 0.0.5, computed by foveal."""

from foveal.compat.halonet_pytorch import halonet_pytorch
from foveal.compat.halonet_pytorch.halonet_pytorch import *  # noqa: F403

__all__ = [*halonet_pytorch.__all__]
