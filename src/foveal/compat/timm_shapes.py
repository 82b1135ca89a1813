"""What the weights of a timm network show of it, and what only the model itself does."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

from torch import nn

from foveal.compat.files import Weights
from foveal.models.halonet import HaloNetConfig

Blocks = list[list[Weights]]
"""Weights of each block of each stage, by their names inside the block."""


def _blocks(weights: Weights) -> Blocks:
    found: dict[tuple[int, int], Weights] = defaultdict(dict)
    for name, value in weights.items():
        if match := re.fullmatch(r"stages\.(\d+)\.(\d+)\.(.+)", name):
            found[int(match[1]), int(match[2])][match[3]] = value
    stages = max(stage for stage, _ in found) + 1
    return [[found[at] for at in sorted(found) if at[0] == stage] for stage in range(stages)]


def _mixer(block: Weights) -> str:
    if "self_attn.kv.weight" in block:
        return "halo"
    return "map" if "self_attn.qkv.weight" in block else "conv"


def shown_by(w: Weights, source: str) -> dict[str, Any]:
    """Keywords of HaloNet that the shapes of weights give, and the `window` of halo attention.

    Raises:
        ValueError: layers that HaloNet has not.
    """
    for name in w:
        if re.search(r"\.self_attn\.(norm_|conv_lambda|pos_enc|rel_pos)", name):
            raise ValueError(f"{source} has lambda layers ({name}), which foveal does not have.")
        if re.search(r"\.(conv2b_kxk|attn_last|shortcut\.pool|conv_kxk|conv1_kxk)\b", name) or (
            ".self_attn." in name and ".conv2_kxk" in name
        ):
            raise ValueError(f"{source} has parts ({name}) that foveal.HaloNet does not have.")
    stages = _blocks(w)
    width = [stage[-1]["conv1_1x1.conv.weight"].shape[0] for stage in stages]
    out = [stage[-1]["conv3_1x1.conv.weight"].shape[0] for stage in stages]
    first = stages[0][0]["conv1_1x1.conv.weight"]
    straight = stages[-1][0].get("shortcut.conv.weight") is None and out[-1] != out[-2]
    head, final = w.get("head.fc.weight"), w.get("final_conv.conv.weight")
    return {
        "depths": tuple(map(len, stages)),
        "dims": tuple(out if straight else width),
        "bottleneck_ratio": 1.0
        if straight
        else tuple(a / b for a, b in zip(out, width, strict=True)),
        "inverted": first.shape[0] / first.shape[1] if straight else None,
        "mixers": tuple(tuple(map(_mixer, stage)) for stage in stages),
        "final_dim": None if final is None else final.shape[0],
        "num_classes": 0 if head is None else head.shape[0],
        **_stem(w),
        **_convolutions(stages),
        **_attention(stages),
    }


def _stem(w: Weights) -> dict[str, Any]:
    convs = [w[name] for name in sorted(w) if re.fullmatch(r"stem\.(conv\d+\.)?conv.weight", name)]
    dims = tuple(conv.shape[0] for conv in convs)
    several = {"stem_dims": dims if len(dims) > 1 else (), "stem_kernel": convs[0].shape[-1]}
    return {**several, "stem_dim": dims[-1], "in_chans": convs[0].shape[1]}


def _convolutions(stages: Blocks) -> dict[str, Any]:
    """Groups and the attention to channels."""
    blocks = [block for stage in stages for block in stage if "conv2_kxk.conv.weight" in block]
    shown: dict[str, Any] = {"group_width": 0, "channel_attention": None}
    for block in blocks:  # the last one is the widest
        dim, of_group = block["conv2_kxk.conv.weight"].shape[:2]
        shown["group_width"] = 0 if dim == of_group else of_group
        if "attn.fc1.weight" in block:
            hidden = block["attn.fc1.weight"].shape[0]
            shown |= {"channel_attention": "se", "se_ratio": hidden / dim}
        elif "attn.conv.weight" in block:
            shown["channel_attention"] = "eca"
    return shown


def _attention(stages: Blocks) -> dict[str, Any]:
    """Heads of each stage, their features, and the side of a window of halo attention."""
    heads, found, window = [8] * len(stages), [], None
    for number, stage in enumerate(stages):
        for block in stage:
            kind = _mixer(block)
            if kind == "conv":
                continue
            rows, dim = block["self_attn.pos_embed.height_rel"].shape
            width = block["post_attn.weight"].shape[0]
            if kind == "halo":
                window, inner = (rows + 1) // 2, block["self_attn.q.weight"].shape[0]
            else:
                inner = (block["self_attn.qkv.weight"].shape[0] - width) // 2
            heads[number] = inner // dim
            found.append((dim, inner, width))
    shown: dict[str, Any] = {"heads": tuple(heads), "window": window}
    if all(inner == width for _, inner, width in found):
        return shown
    if len({dim for dim, _, _ in found}) == 1:
        return {**shown, "dim_head": found[0][0]}
    return {**shown, "qk_ratio": found[-1][1] / found[-1][2]}  # of the widest


def map_size(w: Weights, c: HaloNetConfig) -> tuple[int, int] | None:
    """The size of images whose maps the tables of BottleneckAttn are made for."""
    reduction = c.stem_reduction
    for stage, blocks in enumerate(_blocks(w)):
        for number, block in enumerate(blocks):
            if _mixer(block) == "map":
                tables = [block[f"self_attn.pos_embed.{side}_rel"] for side in ("height", "width")]
                high, wide = ((len(table) + 1) // 2 * reduction for table in tables)
                return high, wide
            reduction *= 1 if number else c.strides[stage]
    return None


def hidden_of(model: nn.Module) -> dict[str, Any]:
    """Keywords of HaloNet that only the model itself tells.

    Raises:
        ValueError: an activation that HaloNet does not have.
    """
    net: Any = model
    while not hasattr(net, "stages") and len(list(net.children())) == 1:
        (net,) = net.children()  # DistributedDataParallel and its like
    acts = {type(one).__name__ for one in net.stem.modules()} & {"ReLU", "SiLU", "GELU", "Swish"}
    if acts not in ({"ReLU"}, {"SiLU"}):
        raise ValueError(f"a foveal.HaloNet has ReLU or SiLU, this {type(net).__name__} {acts}.")
    pool = hasattr(net.stem, "pool")
    attentions = [one for one in net.modules() if hasattr(one, "scale_pos_embed")]
    halo = [one.block_size for one in attentions if hasattr(one, "block_size")]
    stem = [one.stride[0] for one in net.stem.modules() if isinstance(one, nn.Conv2d)]
    stride = 1
    for one in stem:
        stride *= one
    return {
        "act": acts.pop().lower(),
        "stem_pool": pool,
        "stem_stride": stride,
        "strides": tuple(_stride(stage[0]) for stage in net.stages),
        "block_size": halo[0] if halo else 8,
        "scale_rel_pos": attentions[0].scale_pos_embed,
        "drop_rate": float(getattr(net, "drop_rate", 0.0)),
    }


def _stride(block: Any) -> int:
    """Of a stage, by its first block."""
    if hasattr(block, "self_attn"):
        pooled = isinstance(block.self_attn.pool, nn.AvgPool2d)
        return 2 if pooled or getattr(block.self_attn, "block_stride", 1) == 2 else 1
    stride: int = block.conv2_kxk.conv.stride[0]
    return stride
