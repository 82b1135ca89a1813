"""HaloAttn layers of timm.

| what it does | corrected (compat=None) |
|---|---|
| reads zeros beyond the map | masks them |
| with a stride, positions count queries | positions count pixels |
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from foveal.compat.files import Checkpoint, Weights
from foveal.compat.halonet_pytorch.checkpoints import window_sizes
from foveal.compat.upstream import Upstream, load, must
from foveal.layers.halo import HaloAttention


def _build_timm(checkpoint: Checkpoint, config: dict[str, Any], compat: str | None) -> nn.Module:
    w = checkpoint.weights
    config = dict(config)
    heads = config.pop("num_heads", 8)
    stride, averaged = config.pop("stride", 1), config.pop("avg_down", False)
    scale_rel_pos = config.pop("scale_pos_embed", False)
    config.setdefault("halo_size", None if "block_size" in config else 3)
    rows, dim_qk = w["pos_embed.height_rel"].shape
    width = w["q.weight"].shape[0]
    if width != heads * dim_qk:
        raise ValueError(
            f"num_heads={heads} does not fit the weights, which have {width // dim_qk} heads of "
            f"{dim_qk} features; pass config=dict(num_heads={width // dim_qk}, ...)."
        )
    sizes = window_sizes((rows, w["pos_embed.width_rel"].shape[0]), config, "timm")
    averaged = stride > 1 and (averaged or sizes["block_size"] % stride != 0)
    layer = HaloAttention(
        w["q.weight"].shape[1],
        **sizes,
        dim_head=dim_qk,
        heads=heads,
        stride=1 if averaged else stride,
        padding="mask" if compat is None else "attend",
        scale_rel_pos=scale_rel_pos,
        true_offsets=compat is None,
        value_ratio=(w["kv.weight"].shape[0] // heads - dim_qk) / dim_qk,
        out_proj=False,
        qkv_bias="q.bias" in w,
    )
    load(layer, _from_timm(w, heads, dim_qk), checkpoint.source)
    return nn.Sequential(layer, nn.AvgPool2d(2, 2)).eval() if averaged else layer


def _from_timm(weights: Weights, heads: int, dim_qk: int) -> Weights:
    """Names of our layer; keys and values of timm stand side by side head by head."""
    result = {
        "rel_pos_emb.rel_height": weights["pos_embed.height_rel"],
        "rel_pos_emb.rel_width": weights["pos_embed.width_rel"],
        "to_q.weight": weights["q.weight"].flatten(1),
    }
    for kind in ("weight", "bias"):
        if f"kv.{kind}" not in weights:
            continue
        kv = weights[f"kv.{kind}"].flatten(1) if kind == "weight" else weights[f"kv.{kind}"]
        by_head = kv.unflatten(0, (heads, -1))
        parts = (by_head[:, :dim_qk], by_head[:, dim_qk:])
        result[f"to_kv.{kind}"] = torch.cat([part.flatten(0, 1) for part in parts])
        if kind == "bias":
            result["to_q.bias"] = weights["q.bias"]
    return result


def _save(layer: HaloAttention) -> Weights:
    must(
        "timm",
        out_proj=(isinstance(layer.to_out, nn.Linear), False),
        padding=(layer.padding, "attend"),
        true_offsets=(layer.stride > 1 and layer.true_offsets, False),
        rel_pos=(getattr(layer.rel_pos_emb, "mode", None), "sum"),
    )
    state, heads = layer.state_dict(), layer.heads
    weights = {
        "pos_embed.height_rel": state["rel_pos_emb.rel_height"],
        "pos_embed.width_rel": state["rel_pos_emb.rel_width"],
    }
    for kind in ("weight", "bias"):
        if f"to_kv.{kind}" not in state:
            continue
        kv = state[f"to_kv.{kind}"].split((heads * layer.dim_qk, heads * layer.dim_v))
        kv = torch.cat([part.unflatten(0, (heads, -1)) for part in kv], 1).flatten(0, 1)
        q = state[f"to_q.{kind}"]
        maps = kind == "weight"  # of 1 x 1 convolutions
        weights[f"q.{kind}"] = q[..., None, None] if maps else q
        weights[f"kv.{kind}"] = kv[..., None, None] if maps else kv
    return weights


TIMM = Upstream(
    package="timm",
    compats=("timm-1.0",),
    recognises=lambda weights: {"kv.weight", "pos_embed.height_rel"} <= weights.keys(),
    build=_build_timm,
    writes=(HaloAttention,),
    save=_save,
)
