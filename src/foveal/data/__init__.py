"""Data: bytes, pictures, captions; one stream over them that resumes; tokenizers."""

from foveal.data.caption_sources import open_captions
from foveal.data.captioned_set import CaptionedSet
from foveal.data.prefetch import Prefetched
from foveal.data.sampling import ShuffledSampler
from foveal.data.sources import Corpus, open_corpus
from foveal.data.stream import Draw, Source, Stream, VariedSource
from foveal.data.text import TextConfig, TextStream, decode, encode, scoring_windows
from foveal.data.token_files import TokenCorpus, open_tokens
from foveal.data.tokens import CaptionTokenizer, ClipTokenizer

__all__ = [
    "CaptionTokenizer",
    "CaptionedSet",
    "ClipTokenizer",
    "Corpus",
    "Draw",
    "Prefetched",
    "ShuffledSampler",
    "Source",
    "Stream",
    "TextConfig",
    "TextStream",
    "TokenCorpus",
    "VariedSource",
    "decode",
    "encode",
    "open_captions",
    "open_corpus",
    "open_tokens",
    "scoring_windows",
]
