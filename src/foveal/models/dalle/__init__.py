"""DALL-E: pictures from words, token by token."""

from foveal.models.dalle.attention_types import paper_schedule, pattern_of
from foveal.models.dalle.config import DALLEConfig
from foveal.models.dalle.model import DALLE
from foveal.models.dalle.transformer import Transformer

__all__ = ["DALLE", "DALLEConfig", "Transformer", "paper_schedule", "pattern_of"]
