"""Hourglass: a hierarchy of transformers, the inner ones over a shortened sequence."""

from foveal.models.hourglass.config import HourglassConfig
from foveal.models.hourglass.hierarchy import count_parameters, parse_hierarchy
from foveal.models.hourglass.model import HourglassTransformerLM
from foveal.models.hourglass.stage import HourglassTransformer

__all__ = [
    "HourglassConfig",
    "HourglassTransformer",
    "HourglassTransformerLM",
    "count_parameters",
    "parse_hierarchy",
]
