"""Weights of timm's attention layers under our names, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from foveal.compat.files import Weights
from foveal.compat.upstream import must


def from_halo(weights: Weights, heads: int, dim_qk: int) -> Weights:
    """A HaloAttn under our names; its keys and values stand side by side head by head."""
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


def to_halo(layer: Any) -> Weights:
    """A HaloAttention under timm's names.

    Raises:
        ValueError: timm would compute something else with these weights.
    """
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


def from_bottleneck(weights: Weights, width: int) -> Weights:
    """A BottleneckAttn under our names; `width` features of queries, as many keys, then values."""
    result = {
        "rel_height": weights["pos_embed.height_rel"],
        "rel_width": weights["pos_embed.width_rel"],
    }
    for kind in ("weight", "bias"):
        if f"qkv.{kind}" in weights:
            whole = weights[f"qkv.{kind}"]
            whole = whole.flatten(1) if kind == "weight" else whole
            result[f"to_q.{kind}"] = whole[:width]
            result[f"to_kv.{kind}"] = whole[width:]
    return result


def to_bottleneck(layer: Any) -> Weights:
    """A MapAttention under timm's names."""
    state = layer.state_dict()
    result = {
        "pos_embed.height_rel": state["rel_height"],
        "pos_embed.width_rel": state["rel_width"],
    }
    for kind in ("weight", "bias"):
        if f"to_q.{kind}" in state:
            whole = torch.cat([state[f"to_q.{kind}"], state[f"to_kv.{kind}"]])
            result[f"qkv.{kind}"] = whole[..., None, None] if kind == "weight" else whole
    return result
