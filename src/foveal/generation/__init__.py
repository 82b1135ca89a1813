"""Sampling and the generate loop: tokens in, tokens out; knows nothing of text or pixels."""

from foveal.generation.loop import Continued, Decoder, Recompute, generate
from foveal.generation.recorded import Recorded
from foveal.generation.sampling import Sampler

__all__ = ["generate", "Sampler", "Decoder", "Recompute", "Continued", "Recorded"]
