"""SepViT: image models built on separable attention."""

from foveal.models.sepvit.compact import SepViT
from foveal.models.sepvit.config import SepVisionTransformerConfig, SepViTConfig
from foveal.models.sepvit.model import SepVisionTransformer

__all__ = ["SepVisionTransformer", "SepVisionTransformerConfig", "SepViT", "SepViTConfig"]
