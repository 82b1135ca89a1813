"""foveal: structured attention for PyTorch, for long sequences and large images."""

from foveal import caches, generation, layers, models, patterns, testing
from foveal.generation import generate
from foveal.interop import list_upstreams, load_upstream
from foveal.layers import (
    DSSA,
    Attention,
    CausalHAttention1D,
    HaloAttention,
    HAttention1D,
    RelPosEmb,
    SparseAttention,
    SparseAxialCausalAttention,
    SparseConvCausalAttention,
)
from foveal.models import (
    CLIP,
    DALLE,
    VQVAE,
    Cost,
    DiscreteVAE,
    HaloNet,
    HourglassTransformer,
    HourglassTransformerLM,
    HTransformer1D,
    HTransformerClassifier,
    HTransformerSeq2Seq,
    SepViT,
    TransformerLM,
    cost,
    create_model,
    list_models,
    load_model,
    save_model,
)
from foveal.ops import Explanation, PyramidBias, WindowBias, attend, explain, merge
from foveal.version import __version__

__all__ = [
    # modules
    "patterns",
    "layers",
    "models",
    "caches",
    "generation",
    "testing",
    # attention
    "attend",
    "explain",
    "Explanation",
    "merge",
    "WindowBias",
    "PyramidBias",
    # layers
    "HaloAttention",
    "RelPosEmb",
    "DSSA",
    "HAttention1D",
    "CausalHAttention1D",
    "Attention",
    "SparseConvCausalAttention",
    "SparseAxialCausalAttention",
    "SparseAttention",
    # models
    "TransformerLM",
    "HourglassTransformer",
    "HourglassTransformerLM",
    "HaloNet",
    "SepViT",
    "DALLE",
    "DiscreteVAE",
    "VQVAE",
    "CLIP",
    "HTransformer1D",
    "HTransformerClassifier",
    "HTransformerSeq2Seq",
    "create_model",
    "list_models",
    "save_model",
    "load_model",
    "load_upstream",
    "list_upstreams",
    "cost",
    "Cost",
    "generate",
    "__version__",
]
