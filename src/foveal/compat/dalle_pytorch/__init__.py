"""dalle-pytorch 1.6.6, computed by foveal."""

from foveal.compat.dalle_pytorch.attention import (
    Attention,
    SparseAttention,
    SparseAxialCausalAttention,
    SparseConvCausalAttention,
)
from foveal.compat.dalle_pytorch.dalle_pytorch import CLIP, DALLE, DiscreteVAE, Transformer
from foveal.compat.dalle_pytorch.vae import OpenAIDiscreteVAE, VQGanVAE

__all__ = [
    "DALLE",
    "CLIP",
    "DiscreteVAE",
    "OpenAIDiscreteVAE",
    "VQGanVAE",
    "Transformer",
    "Attention",
    "SparseConvCausalAttention",
    "SparseAxialCausalAttention",
    "SparseAttention",
]
