"""SepViT of vit-pytorch (model and DSSA layer) and of its authors.

| package | what it does | corrected (compat=None) |
|---|---|---|
| vit-pytorch | ignores window_size and dim_head: always 7 and 32 | window_size is honoured |
| vit-pytorch | sizes must be multiples of the window at every stage | any size |
| sepvit | 224 x 224 pixels only | any size: window tokens are interpolated |

"sepvit" are state dicts of the authors' repository, liwei109/SepViT, `classification/sepvit.py`.
Their parameter names were read there; no weights were to be had to try them on.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from foveal.layers.separable import DSSA
from foveal.models.sepvit.compact import SepViT
from foveal.models.sepvit.model import SepVisionTransformer
from foveal.models.upstream import Checkpoint, Upstream, Weights, load, take

VIT_PYTORCH_WINDOW = 7


def _is_layer(weights: Weights) -> bool:
    return {"window_tokens", "to_qkv.weight"} <= weights.keys()


def _build_vit_pytorch(
    checkpoint: Checkpoint, config: dict[str, Any], compat: str | None
) -> nn.Module:
    if _is_layer(checkpoint.weights):
        return _build_dssa(checkpoint, config)
    config = dict(config)
    if compat is not None:
        # accepted by the package, and never used
        config["window_size"] = VIT_PYTORCH_WINDOW
        config.pop("dim_head", None)
    shape = _shape(checkpoint.weights)
    if isinstance(config.get("heads"), int):
        config["heads"] = (config["heads"],) * len(shape["depth"])
    options = take(config, shape, "vit-pytorch")
    return load(SepViT(**options), checkpoint.weights, checkpoint.source)


def _build_dssa(checkpoint: Checkpoint, config: dict[str, Any]) -> nn.Module:
    w = checkpoint.weights
    options = take(config, _dssa_shape(w, ""), "vit-pytorch")
    return load(DSSA(**options), w, checkpoint.source)


def _dssa_shape(weights: Weights, prefix: str) -> dict[str, int]:
    dim_head = len(weights[f"{prefix}window_tokens_to_qk.0.weight"])
    inner, dim, _ = weights[f"{prefix}to_qkv.weight"].shape
    return {"dim": dim, "heads": inner // 3 // dim_head, "dim_head": dim_head}


def _shape(weights: Weights) -> dict[str, Any]:
    """Keywords of SepViT that the weights give."""
    depth = _depths(weights, r"layers\.(\d+)\.2\.layers\.(\d+)\.")
    first = [_dssa_shape(weights, f"layers.{s}.2.layers.0.0.") for s in range(len(depth))]
    hidden, dim = weights["layers.0.2.layers.0.1.net.1.weight"].shape[:2]
    return {
        "num_classes": len(weights["mlp_head.2.weight"]),
        "dim": dim,
        "depth": depth,
        "heads": tuple(one["heads"] for one in first),
        "dim_head": first[0]["dim_head"],
        "ff_mult": hidden / dim,
        "channels": weights["layers.0.0.conv.weight"].shape[1],
    }


def _depths(weights: Weights, pattern: str) -> tuple[int, ...]:
    """Blocks of each stage, from names in which both are numbered."""
    found = [re.match(pattern, name) for name in weights]
    places = [(int(m[1]), int(m[2])) for m in found if m]
    if not places:
        raise ValueError("the weights hold no blocks of a SepViT.")
    stages = 1 + max(stage for stage, _ in places)
    return tuple(1 + max(b for s, b in places if s == stage) for stage in range(stages))


VIT_PYTORCH = Upstream(
    package="vit-pytorch",
    compats=("vit-pytorch-1.26.11",),
    recognises=lambda weights: (
        _is_layer(weights) or "layers.0.2.layers.0.0.window_tokens" in weights
    ),
    build=_build_vit_pytorch,
)


# -- the authors --------------------------------------------------------------------------------

RENAMES = (
    (r"patch_embeds\.(\d+)\.proj\.", r"stages.\1.embed.conv."),
    (r"patch_embeds\.(\d+)\.norm\.", r"stages.\1.norm."),
    (r"pos_block\.(\d+)\.proj\.0\.", r"stages.\1.peg.proj."),
    (r"blocks\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\.norm1\.", ".attn.norm."),
    (r"\.attn\.DSA_qkv\.", ".attn.to_qkv."),
    (r"\.attn\.win_tokens_norm\.", ".attn.win_norm."),
    (r"\.attn\.PSA_qk\.", ".attn.win_qk."),
    (r"\.attn\.proj\.", ".attn.to_out."),
    (r"\.win_tokens$", ".attn.win_tokens"),
    (r"\.norm2\.", ".ff.0."),
    (r"\.mlp\.fc1\.", ".ff.1."),
    (r"\.mlp\.fc2\.", ".ff.4."),
)
"""The authors' names -> ours, applied one after the other."""

HEAD_WIDTH = 32  # in all of the authors' sizes; the weights do not give it


def _build_authors(
    checkpoint: Checkpoint, config: dict[str, Any], compat: str | None
) -> nn.Module:
    w = checkpoint.weights
    config = dict(config)
    depths = _depths(w, r"blocks\.(\d+)\.(\d+)\.")
    dims = tuple(len(w[f"patch_embeds.{s}.norm.weight"]) for s in range(len(depths)))
    shape = {
        "num_classes": len(w["head.weight"]) if "head.weight" in w else 0,
        "in_chans": w["patch_embeds.0.proj.weight"].shape[1],
        "depths": depths,
        "dims": dims,
        "qkv_bias": "blocks.0.0.attn.DSA_qkv.bias" in w,
        "mlp_ratio": w["blocks.0.0.mlp.fc1.weight"].shape[0] / dims[0],
    }
    options = take(config, shape, "sepvit")
    options.setdefault("heads", tuple(dim // HEAD_WIDTH for dim in dims))
    model = SepVisionTransformer(**options)
    return load(model, {_rename(name): value for name, value in w.items()}, checkpoint.source)


def _rename(name: str) -> str:
    for pattern, new in RENAMES:
        name = re.sub(pattern, new, name)
    return name


AUTHORS = Upstream(
    package="sepvit",
    compats=("sepvit-main",),
    recognises=lambda weights: "blocks.0.0.attn.DSA_qkv.weight" in weights,
    build=_build_authors,
)
