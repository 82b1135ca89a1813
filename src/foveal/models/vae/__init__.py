"""Models that turn pictures into tokens and back, for DALL-E."""

from foveal.models.vae.base import CodebookUse, ImageTokenizer, codebook_use
from foveal.models.vae.coder import CoderVAE, PictureCoder
from foveal.models.vae.config import DiscreteVAEConfig, ImageTokenizerConfig, VQVAEConfig
from foveal.models.vae.discrete import DiscreteVAE
from foveal.models.vae.vq import VQVAE

__all__ = [
    "ImageTokenizer",
    "ImageTokenizerConfig",
    "DiscreteVAE",
    "DiscreteVAEConfig",
    "VQVAE",
    "VQVAEConfig",
    "CoderVAE",
    "PictureCoder",
    "CodebookUse",
    "codebook_use",
]
