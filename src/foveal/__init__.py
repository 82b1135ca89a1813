"""foveal: structured attention for PyTorch, for long sequences and large images.

Rooms load when something in them is first named, so that `import foveal` and the `foveal` command
start at once. The operators are there as soon as torch is: exported programs need them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from foveal.common.lazy import import_beside, is_provided, provide, provided
from foveal.version import __version__

if TYPE_CHECKING:  # for type checkers and editors; `__getattr__` finds the same
    from foveal import caches, compat, generation, layers, models, patterns, testing
    from foveal import interop as interop
    from foveal import ops as ops
    from foveal.compat.dalle_pytorch.attention import (
        Attention,
        SparseAttention,
        SparseAxialCausalAttention,
        SparseConvCausalAttention,
    )
    from foveal.compat.packages import list_upstreams, load_upstream, save_upstream
    from foveal.compat.vit_pytorch.network import SepViT
    from foveal.generation import generate
    from foveal.layers import (
        DSSA,
        CausalHAttention1D,
        HaloAttention,
        HAttention1D,
        RelPosEmb,
    )
    from foveal.models import (
        CLIP,
        DALLE,
        VQVAE,
        DiscreteVAE,
        HaloNet,
        HourglassTransformer,
        HourglassTransformerLM,
        HTransformer1D,
        HTransformerClassifier,
        HTransformerSeq2Seq,
        TransformerLM,
        create_model,
        list_models,
        load_model,
        save_model,
    )
    from foveal.models.cost import Cost, cost
    from foveal.ops import (
        Explanation,
        PyramidBias,
        TableBias,
        WindowBias,
        alibi,
        attend,
        attend_selected,
        attend_varlen,
        explain,
        explain_selected,
        merge,
    )
    from foveal.ops.mods import flex_attention

__all__ = [
    # modules
    "patterns",
    "layers",
    "models",
    "caches",
    "generation",
    "testing",
    "compat",
    # attention
    "attend",
    "attend_selected",
    "attend_varlen",
    "explain",
    "explain_selected",
    "Explanation",
    "merge",
    "flex_attention",
    "WindowBias",
    "TableBias",
    "PyramidBias",
    "alibi",
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
    "save_upstream",
    "list_upstreams",
    "cost",
    "Cost",
    "generate",
    "__version__",
]

_ROOMS = (
    "patterns",
    "ops",
    "caches",
    "layers",
    "generation",
    "models",
    "interop",
    "testing",
    "compat",
    "parallel",
    "export",
)

_LAYERS, _PACKAGES = "foveal.compat.dalle_pytorch.attention", "foveal.compat.packages"
provide(
    {
        # names of rooms below, and of what few calls need
        "Attention": f"{_LAYERS}:Attention",
        "SparseAttention": f"{_LAYERS}:SparseAttention",
        "SparseConvCausalAttention": f"{_LAYERS}:SparseConvCausalAttention",
        "SparseAxialCausalAttention": f"{_LAYERS}:SparseAxialCausalAttention",
        "flex_attention": "foveal.ops.mods:flex_attention",
        "SepViT": "foveal.compat.vit_pytorch.network:SepViT",
        "SepViTConfig": "foveal.compat.vit_pytorch.network:SepViTConfig",
        **{
            name: f"{_PACKAGES}:{name}"
            for name in ("load_upstream", "save_upstream", "list_upstreams", "register_upstream")
        },
        "read_checkpoint": "foveal.compat.files:read_checkpoint",
        # of the Hub
        "hub_files": "foveal.integrations.hub.fetch:HubFiles",
        "push_to_hub": "foveal.integrations.hub.push:push",
        "publish_run": "foveal.recipes.publish:publish",
        # a family of models, and values of `compat`
        "diffusers_vq": "foveal.integrations.diffusers:VQModelVAE",
        "sepvit_compact": "foveal.compat.vit_pytorch.network:SepViT",
        "h-transformer-1d-0.1.9": "foveal.compat.h_transformer_1d.attention:PackageAttention",
        "hourglass-transformer-pytorch-0.0.6": (
            "foveal.compat.hourglass_transformer_pytorch.stage:PackageHourglass"
        ),
        "clip-of-dalle-pytorch": "foveal.compat.dalle_pytorch.names:accept_clip",
    }
)


def __getattr__(name: str) -> Any:
    """Load a room when it, or something that it exports, is first named."""
    if name in _ROOMS:
        importlib.import_module("foveal.ops")  # operators are there once anything is named
        return importlib.import_module(f"foveal.{name}")
    if name in __all__ and is_provided(name):
        globals()[name] = found = provided(name)
        return found
    if name in __all__:
        for room in _ROOMS:  # the lowest first
            module = importlib.import_module(f"foveal.{room}")
            if name in module.__all__:
                globals()[name] = found = getattr(module, name)
                return found
    raise AttributeError(f"module 'foveal' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})


import_beside("torch", "foveal.ops")
