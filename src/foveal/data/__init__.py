"""Data: sources of bytes, shuffled samplers that resume, windows to train on and to score."""

from foveal.data.sampling import ShuffledSampler
from foveal.data.sources import Corpus, open_corpus
from foveal.data.text import TextConfig, TextStream, decode, encode, scoring_windows

__all__ = [
    "Corpus",
    "ShuffledSampler",
    "TextConfig",
    "TextStream",
    "decode",
    "encode",
    "open_corpus",
    "scoring_windows",
]
