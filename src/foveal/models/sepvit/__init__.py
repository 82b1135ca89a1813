"""SepViT: image models built on separable attention."""

from foveal.models.sepvit.config import SepVisionTransformerConfig
from foveal.models.sepvit.model import SepVisionTransformer

__all__ = ["SepVisionTransformer", "SepVisionTransformerConfig"]
