"""CLIP: which words go with which picture."""

from foveal.models.clip.config import CLIPConfig
from foveal.models.clip.model import CLIP

__all__ = ["CLIP", "CLIPConfig"]
