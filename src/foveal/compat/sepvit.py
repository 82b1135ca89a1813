"""State dicts of SepViT's authors: liwei109/SepViT, `classification/sepvit.py`.

Their parameter names were read there; no weights were to be had to try them on. They take images
of 224 x 224 pixels only; with compat=None window tokens are interpolated to any size.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from foveal.compat.files import Checkpoint
from foveal.compat.upstream import Upstream, load, take
from foveal.compat.vit_pytorch.checkpoints import count_blocks
from foveal.models.sepvit.model import SepVisionTransformer

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
    depths = count_blocks(w, r"blocks\.(\d+)\.(\d+)\.")
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
