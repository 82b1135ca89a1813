"""Checkpoints of h-transformer-1d 0.1.9: plain, causal, reversible, with shifted tokens.

The table of what the package does otherwise stands in `attention.py`, which reproduces it. With
compat=None the corrected attention runs on the same weights; tokens are shifted as the weights
were trained, one place to later positions.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from foveal.compat.files import Checkpoint, Weights
from foveal.compat.h_transformer_1d.h_transformer_1d import RotaryEmbedding, package_mask
from foveal.compat.upstream import Table, Upstream, load, must, take, to_ours, to_theirs
from foveal.models.htransformer.config import BACKWARD, PACKAGE
from foveal.models.htransformer.model import HTransformer1D

NAME = "h-transformer-1d"

_BRANCH = r"layers\.(?:layers\.(\d+)\.([01])|blocks\.(\d+)\.([fg])\.net)\."
_PARTS = {
    "attn.to_qkv": "to_qkv",
    "attn.to_out": "to_out",
    "ff.to_hidden": "net.0",
    "ff.to_out": "net.2",
}


def names(model: HTransformer1D) -> Table:
    """The package's names of the parameters of a model -> ours."""
    c, outer = model.settings, {"transformer.norm": "to_logits.0", "to_logits": "to_logits.1"}
    table = {}
    for ours in model.state_dict():
        part, kind = ours.rsplit(".", 1)
        found = re.match(r"transformer\.layers\.(\d+)\.((attn|ff).*)", part)
        if found is None:
            table[f"{outer.get(part, part)}.{kind}"] = ours
            continue
        branch = ["attn", "ff"].index(found[3])
        start = f"layers.layers.{found[1]}.{branch}"
        if c.reversible:
            start = f"layers.blocks.{found[1]}.{'fg'[branch]}.net"
        inside = "fn.fn" if c.shifts else "fn"
        rest = f"{inside}.{_PARTS[found[2]]}" if found[2] in _PARTS else "norm"
        table[f"{start}.{rest}.{kind}"] = ours
    return table


def _shape(w: Weights) -> dict[str, Any]:
    """Keywords of HTransformer1D that the weights give."""
    numbers = [re.match(_BRANCH, name) for name in w]
    depth = 1 + max(int(m[1] or m[3]) for m in numbers if m)
    num_tokens, dim = w["token_emb.weight"].shape
    first = next(name for name in w if name.endswith("to_qkv.weight"))
    dim_head = 2 * len(w["pos_emb.freqs"])
    hidden = next(w[name] for name in w if name.endswith("net.0.weight"))
    causal = any(name.endswith(".mask") for name in w)
    shape = {
        "num_tokens": num_tokens,
        "dim": dim,
        "depth": depth,
        "heads": len(w[first]) // 3 // dim_head,
        "dim_head": dim_head,
        "ff_mult": len(hidden) / dim,
        "causal": causal,
        "reversible": any(name.startswith("layers.blocks.") for name in w),
        "shift_tokens": ".fn.fn." in first,
    }
    return shape | (_trained_length(w) if causal else {})


def _trained_length(w: Weights) -> dict[str, Any]:
    """block_size from the mask (levels, max_seq_len) of a causal layer; a block has none."""
    levels, length = next(w[name] for name in w if name.endswith(".mask")).shape
    return {"block_size": length >> levels}


def _build(checkpoint: Checkpoint, config: dict[str, Any], compat: str | None) -> nn.Module:
    w = checkpoint.weights
    _check_positions(w)
    config = {name: value for name, value in config.items() if name != "pos_emb"}
    options = take(config, _shape(w), NAME)
    masks = [value for name, value in w.items() if name.endswith(".mask")]
    if masks and compat:  # the package reads no longer sequences, and has the length in its mask
        options.setdefault("max_seq_len", masks[0].shape[1])
    options.setdefault("block_size", 128)  # the package's default, which its weights do not give
    if options["shift_tokens"]:
        options["shift_tokens"] = BACKWARD  # as trained, although it was meant for both ways
    model = HTransformer1D(**options, compat=compat)
    weights = {n: v for n, v in w.items() if not n.endswith((".freqs", ".mask"))}
    return load(model, to_ours(names(model), weights), checkpoint.source)


def _save(model: HTransformer1D) -> Weights:
    c = model.settings
    must(NAME, compat=(c.compat, PACKAGE), tie_embeddings=(c.tie_embeddings, False))
    must(NAME, activation=(c.activation, "gelu"), shift_tokens=(c.shifts or BACKWARD, BACKWARD))
    table, state = names(model), model.state_dict()
    weights = to_theirs(table, state)
    head = c.dim if c.dim_head is None else c.dim_head * c.heads
    freqs = RotaryEmbedding(head // c.heads).freqs.detach()
    weights["pos_emb.freqs"] = freqs
    for name in table:
        if name.endswith("to_qkv.weight"):
            layer = name.removesuffix("to_qkv.weight")
            weights[f"{layer}pos_emb.freqs"] = freqs
            if c.causal:
                weights[f"{layer}mask"] = package_mask(c.max_seq_len, c.block_size)
    return weights


def _check_positions(w: Weights) -> None:
    """Raise ValueError for frequencies other than the package's own."""
    freqs = w["pos_emb.freqs"]
    rounding = torch.finfo(freqs.dtype).eps
    freqs = freqs.float().cpu()
    exponents = torch.arange(0, 2 * len(freqs), 2, device="cpu").float()
    usual = 10_000.0 ** (-exponents / (2 * len(freqs)))
    if not torch.allclose(freqs, usual, rtol=max(1e-3, rounding)):
        raise ValueError(
            f"pos_emb.freqs must be the default frequencies of {NAME}, got {freqs[:4].tolist()}, "
            "..."
        )


H_TRANSFORMER_1D = Upstream(
    package=NAME,
    compats=(PACKAGE,),
    recognises=lambda weights: (
        {"pos_emb.freqs", "to_logits.1.weight"} <= weights.keys()
        and any(name.endswith("to_qkv.weight") for name in weights)
    ),
    build=_build,
    writes=(HTransformer1D,),
    save=_save,
)
