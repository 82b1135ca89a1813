"""H-Transformer-1D: language model, encoder, classifier, encoder and decoder."""

from foveal.models.htransformer.classifier import HTransformerClassifier
from foveal.models.htransformer.config import (
    HTransformerClassifierConfig,
    HTransformerConfig,
    HTransformerSeq2SeqConfig,
)
from foveal.models.htransformer.model import HTransformer1D
from foveal.models.htransformer.seq2seq import HTransformerSeq2Seq

__all__ = [
    "HTransformer1D",
    "HTransformerConfig",
    "HTransformerClassifier",
    "HTransformerClassifierConfig",
    "HTransformerSeq2Seq",
    "HTransformerSeq2SeqConfig",
]
