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

from foveal.compat.upstream import Upstream, load, take
from foveal.interop.files import Checkpoint, Weights
from foveal.models.htransformer.config import BACKWARD, PACKAGE
from foveal.models.htransformer.model import HTransformer1D

NAME = "h-transformer-1d"

_BRANCH = r"layers\.(?:layers\.(\d+)\.([01])|blocks\.(\d+)\.([fg])\.net)\."
_PARTS = {
    "norm": "{}_norm",
    "to_qkv": "attn.to_qkv",
    "to_out": "attn.to_out",
    "net.0": "ff.to_hidden",
    "net.2": "ff.to_out",
}
_OUTER = {
    "token_emb.": "token_emb.",
    "to_logits.0.": "transformer.norm.",
    "to_logits.1.": "to_logits.",
}


def _rename(name: str) -> str | None:
    """Our name of a parameter; None for what is not a weight."""
    for theirs, ours in _OUTER.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    found = re.match(_BRANCH, name)
    if not found or name.endswith((".freqs", ".mask")):
        return None
    number = found[1] or found[3]
    branch = "attn" if (found[2] or found[4]) in ("0", "f") else "ff"
    rest = re.sub(r"^(fn\.)+", "", name[found.end() :])
    part, kind = rest.rsplit(".", 1)
    if part not in _PARTS:
        raise ValueError(f"{name} is no parameter of {NAME}.")
    return f"transformer.layers.{number}.{_PARTS[part].format(branch)}.{kind}"


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
    options.setdefault("block_size", 128)  # the package's default, which its weights do not give
    if options["shift_tokens"]:
        options["shift_tokens"] = BACKWARD  # as trained, although it was meant for both ways
    model = HTransformer1D(**options, compat=compat)
    named = {_rename(name): value for name, value in w.items()}
    return load(model, {k: v for k, v in named.items() if k is not None}, checkpoint.source)


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
)
