"""HaloNet: image models built on blocked local attention."""

from foveal.models.halonet.config import HaloNetConfig
from foveal.models.halonet.model import HaloNet

__all__ = ["HaloNet", "HaloNetConfig"]
