"""HaloAttention layers of halonet-pytorch and of timm.

| package | what it does | corrected (compat=None) |
|---|---|---|
| halonet-pytorch 0.0.5 | sizes must be multiples of the block | any size |
| halonet-pytorch 0.0.4 | masks the map and attends to what lies beyond it | as 0.0.5 |
| timm | reads zeros beyond the map | masks them |
| timm | with a stride, positions count queries | positions count pixels |
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from foveal.layers.halo import HaloAttention, Padding
from foveal.models.upstream import Checkpoint, Upstream, Weights, load, take

INVERTED = "halonet-pytorch-0.0.4"


def _window(tables: tuple[int, int], config: dict[str, Any], package: str) -> dict[str, Any]:
    """block_size and halo_size: the tables give their sum, the config at least one of them."""
    windows = tuple((rows + 1) // 2 for rows in tables)
    block, halo = config.get("block_size"), config.get("halo_size")
    if block is None and halo is None:
        raise ValueError(
            f"{package} weights give only block_size + 2 * halo_size = {windows[0]}; pass "
            "config=dict(block_size=..., halo_size=...)."
        )
    if block is None:
        block = windows[0] - 2 * (halo or 0)
    if halo is None:
        halo = (windows[0] - block) // 2
    if any(block + 2 * halo != window for window in windows):
        raise ValueError(
            f"block_size={block} and halo_size={halo} do not fit the weights, which have "
            f"block_size + 2 * halo_size = {windows[0]}."
        )
    return {"block_size": block, "halo_size": halo}


def _build(checkpoint: Checkpoint, config: dict[str, Any], compat: str | None) -> nn.Module:
    w = checkpoint.weights
    inner, dim = w["to_q.weight"].shape
    rows, dim_head = w["rel_pos_emb.rel_height"].shape
    shape = {"dim": dim, "dim_head": dim_head, "heads": inner // dim_head}
    options = take(config, shape, "halonet-pytorch")
    columns = w["rel_pos_emb.rel_width"].shape[0]
    options |= _window((rows, columns), config, "halonet-pytorch")
    padding: Padding = "inverted" if compat == INVERTED else "mask"
    return load(HaloAttention(**options, padding=padding), w, checkpoint.source)


HALONET_PYTORCH = Upstream(
    package="halonet-pytorch",
    compats=("halonet-pytorch-0.0.5", INVERTED),
    recognises=lambda weights: {"to_kv.weight", "rel_pos_emb.rel_height"} <= weights.keys(),
    build=_build,
)


# -- timm ---------------------------------------------------------------------------------------


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
    sizes = _window((rows, w["pos_embed.width_rel"].shape[0]), config, "timm")
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


TIMM = Upstream(
    package="timm",
    compats=("timm-1.0",),
    recognises=lambda weights: {"kv.weight", "pos_embed.height_rel"} <= weights.keys(),
    build=_build_timm,
)
