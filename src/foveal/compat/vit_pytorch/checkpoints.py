"""SepViT of vit-pytorch: model and DSSA layer.

| what it does | corrected (compat=None) |
|---|---|
| ignores window_size and dim_head: always 7 and 32 | window_size is honoured |
| sizes must be multiples of the window at every stage | any size |
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from foveal.compat.files import Checkpoint, Weights
from foveal.compat.upstream import Upstream, load, must, take
from foveal.compat.vit_pytorch.network import SepViT
from foveal.layers.separable import DSSA

NAME = "vit-pytorch"
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
    options = take(config, shape, NAME)
    return load(SepViT(**options), checkpoint.weights, checkpoint.source)


def _build_dssa(checkpoint: Checkpoint, config: dict[str, Any]) -> nn.Module:
    w = checkpoint.weights
    options = take(config, _dssa_shape(w, ""), NAME)
    return load(DSSA(**options), w, checkpoint.source)


def _dssa_shape(weights: Weights, prefix: str) -> dict[str, int]:
    dim_head = len(weights[f"{prefix}window_tokens_to_qk.0.weight"])
    inner, dim, _ = weights[f"{prefix}to_qkv.weight"].shape
    return {"dim": dim, "heads": inner // 3 // dim_head, "dim_head": dim_head}


def _shape(weights: Weights) -> dict[str, Any]:
    """Keywords of SepViT that the weights give."""
    depth = count_blocks(weights, r"layers\.(\d+)\.2\.layers\.(\d+)\.")
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


def count_blocks(weights: Weights, pattern: str) -> tuple[int, ...]:
    """Blocks of each stage, from names in which both are numbered."""
    found = [re.match(pattern, name) for name in weights]
    places = [(int(m[1]), int(m[2])) for m in found if m]
    if not places:
        raise ValueError("the weights hold no blocks of a SepViT.")
    stages = 1 + max(stage for stage, _ in places)
    return tuple(1 + max(b for s, b in places if s == stage) for stage in range(stages))


def _save(model: SepViT | DSSA) -> Weights:
    if isinstance(model, DSSA):
        side = model.window_size[0]
        must(NAME, window_size=(model.window_size, (side, side)))
        return dict(model.state_dict())
    c = model.settings
    must(
        NAME,
        window_size=(c.per_stage("window_size"), (VIT_PYTORCH_WINDOW,) * len(c.depth)),
        dim_head=(c.dim_head, 32),
        features_only=(c.features_only, False),
    )
    if not c.num_classes:
        raise ValueError(f"{NAME} has a classifier always, got a model with num_classes=0.")
    return dict(model.state_dict())


VIT_PYTORCH = Upstream(
    package=NAME,
    compats=("vit-pytorch-1.26.11",),
    recognises=lambda weights: (
        _is_layer(weights) or "layers.0.2.layers.0.0.window_tokens" in weights
    ),
    build=_build_vit_pytorch,
    writes=(SepViT, DSSA),
    save=_save,
)
