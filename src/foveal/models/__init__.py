"""Model families built on attend(), each with its published sizes."""

from typing import Any

from foveal.common.lazy import provided
from foveal.models.base import Model
from foveal.models.causal import CausalLM
from foveal.models.clip import CLIP, CLIPConfig
from foveal.models.cost import Cost, cost
from foveal.models.dalle import DALLE, DALLEConfig
from foveal.models.halonet import HaloNet, HaloNetConfig
from foveal.models.hourglass import HourglassConfig, HourglassTransformer, HourglassTransformerLM
from foveal.models.htransformer import (
    HTransformer1D,
    HTransformerClassifier,
    HTransformerClassifierConfig,
    HTransformerConfig,
    HTransformerSeq2Seq,
    HTransformerSeq2SeqConfig,
)
from foveal.models.image import ImageModel
from foveal.models.registry import create_model, list_models
from foveal.models.sepvit import SepVisionTransformer, SepVisionTransformerConfig
from foveal.models.storage import load_model, save_model
from foveal.models.transformer import TransformerConfig, TransformerLM
from foveal.models.vae import VQVAE, DiscreteVAE, DiscreteVAEConfig, ImageTokenizer, VQVAEConfig

__all__ = [
    "Model",
    "CausalLM",
    "TransformerLM",
    "TransformerConfig",
    "HourglassTransformerLM",
    "HourglassTransformer",
    "HourglassConfig",
    "HTransformer1D",
    "HTransformerConfig",
    "HTransformerClassifier",
    "HTransformerClassifierConfig",
    "HTransformerSeq2Seq",
    "HTransformerSeq2SeqConfig",
    "ImageModel",
    "HaloNet",
    "HaloNetConfig",
    "DALLE",
    "DALLEConfig",
    "SepVisionTransformer",
    "SepVisionTransformerConfig",
    "SepViT",
    "SepViTConfig",
    "CLIP",
    "CLIPConfig",
    "ImageTokenizer",
    "DiscreteVAE",
    "DiscreteVAEConfig",
    "VQVAE",
    "VQVAEConfig",
    "create_model",
    "list_models",
    "save_model",
    "load_model",
    "Cost",
    "cost",
]


def __getattr__(name: str) -> Any:
    return provided(name, "foveal.models", __all__)  # the network of vit-pytorch
