"""The plain decoder, in which every layer takes a pattern."""

from foveal.models.transformer.config import TransformerConfig
from foveal.models.transformer.model import TransformerLM

__all__ = ["TransformerConfig", "TransformerLM"]
