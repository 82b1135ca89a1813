"""Data: bytes, pictures, captions; one stream over them that resumes; tokenizers."""

from foveal.data.captions import CaptionedSet, open_captions
from foveal.data.sampling import ShuffledSampler
from foveal.data.sources import Corpus, open_corpus
from foveal.data.stream import Draw, Source, Stream, VariedSource
from foveal.data.text import TextConfig, TextStream, decode, encode, scoring_windows
from foveal.data.tokens import CaptionTokenizer, ClipTokenizer

__all__ = [
    "CaptionTokenizer",
    "CaptionedSet",
    "ClipTokenizer",
    "Corpus",
    "Draw",
    "ShuffledSampler",
    "Source",
    "Stream",
    "TextConfig",
    "TextStream",
    "VariedSource",
    "decode",
    "encode",
    "open_captions",
    "open_corpus",
    "scoring_windows",
]
