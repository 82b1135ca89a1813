"""timm: HaloAttn and BottleneckAttn layers; whole networks are in timm_networks.

| what it does | corrected (compat=None) |
|---|---|
| reads zeros beyond the map | masks them |
| with a stride, positions count queries | positions count pixels |
| BottleneckAttn wants maps of one size | any size |
"""

from __future__ import annotations

from typing import Any

from torch import nn

from foveal.compat.files import Checkpoint, Weights
from foveal.compat.halonet_pytorch.checkpoints import window_sizes
from foveal.compat.timm_layers import from_bottleneck, from_halo, to_bottleneck, to_halo
from foveal.compat.timm_networks import build_network, is_network, save_network
from foveal.compat.upstream import Upstream, load
from foveal.layers.halo import HaloAttention
from foveal.layers.map_attention import MapAttention
from foveal.models.halonet import HaloNet
from foveal.models.halonet.parts import averaged


def _build_timm(checkpoint: Checkpoint, config: dict[str, Any], compat: str | None) -> nn.Module:
    w = checkpoint.weights
    if is_network(w):
        return build_network(checkpoint, config, compat)
    if "qkv.weight" in w:
        return _build_bottleneck(checkpoint, config)
    config = dict(config)
    heads = config.pop("num_heads", 8)
    stride, pooled = config.pop("stride", 1), config.pop("avg_down", False)
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
    pooled = stride > 1 and (pooled or sizes["block_size"] % stride != 0)
    layer = HaloAttention(
        w["q.weight"].shape[1],
        **sizes,
        dim_head=dim_qk,
        heads=heads,
        stride=1 if pooled else stride,
        padding="mask" if compat is None else "attend",
        scale_rel_pos=scale_rel_pos,
        true_offsets=compat is None,
        value_ratio=(w["kv.weight"].shape[0] // heads - dim_qk) / dim_qk,
        out_proj=False,
        qkv_bias="q.bias" in w,
    )
    load(layer, from_halo(w, heads, dim_qk), checkpoint.source)
    return averaged(layer).eval() if pooled else layer


def _build_bottleneck(checkpoint: Checkpoint, config: dict[str, Any]) -> nn.Module:
    w = checkpoint.weights
    heads, stride = config.pop("num_heads", 4), config.pop("stride", 1)
    scaled = config.pop("scale_pos_embed", False)
    if config:
        raise ValueError(
            f"a BottleneckAttn has num_heads, stride and scale_pos_embed to be told, got {config}."
        )
    rows, dim_qk = w["pos_embed.height_rel"].shape
    width = w["qkv.weight"].shape[0] - 2 * heads * dim_qk
    if width < heads or width % heads:
        raise ValueError(
            f"num_heads={heads} does not fit the weights; pass config=dict(num_heads=...)."
        )
    layer = MapAttention(
        w["qkv.weight"].shape[1],
        ((rows + 1) // 2, (w["pos_embed.width_rel"].shape[0] + 1) // 2),
        dim_qk,
        heads,
        value_ratio=width / heads / dim_qk,
        scale_rel_pos=scaled,
        qkv_bias="qkv.bias" in w,
    )
    load(layer, from_bottleneck(w, heads * dim_qk), checkpoint.source)
    return averaged(layer).eval() if stride > 1 else layer


def _save(model: nn.Module) -> Weights:
    if isinstance(model, HaloNet):
        return save_network(model)
    return to_bottleneck(model) if isinstance(model, MapAttention) else to_halo(model)


def _recognises(weights: Weights) -> bool:
    layer = {"pos_embed.height_rel", "pos_embed.width_rel"} <= weights.keys()
    return is_network(weights) or (layer and bool({"kv.weight", "qkv.weight"} & weights.keys()))


TIMM = Upstream(
    package="timm",
    compats=("timm-1.0",),
    recognises=_recognises,
    build=_build_timm,
    writes=(HaloAttention, MapAttention, HaloNet),
    save=_save,
)
