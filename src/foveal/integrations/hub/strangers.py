"""Repositories of other packages: whose they are, and how they are opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from foveal.common.words import shorten

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".tar", ".joblib", ".npy")
_UPSTREAM = (
    "foveal.load_upstream reads checkpoints of the packages in foveal.list_upstreams() from a "
    "downloaded file"
)


def whose_config(content: Mapping[str, Any], repo: str) -> str:
    """What to say of a config.json that is not as foveal writes it, after 'is no model of foveal'.

    Args:
        content: of the file.
        repo: the repository, for the command that opens it.
    """
    if "model_type" in content or "architectures" in content or "transformers_version" in content:
        kind = shorten(str(content.get("model_type", "")), 40)
        named = f" ({kind})" if kind else ""
        return (
            f", but of transformers{named}: transformers.AutoModel.from_pretrained({repo!r}) "
            "opens it, and foveal.integrations.transformers gives it foveal's attention."
        )
    if "_diffusers_version" in content:
        kind = shorten(str(content.get("_class_name", "the class")), 40)
        return (
            f", but of diffusers: diffusers.{kind}.from_pretrained({repo!r}) opens it, and "
            "foveal.integrations.diffusers makes it the picture coder of a DALLE."
        )
    if "architecture" in content and ("pretrained_cfg" in content or "num_classes" in content):
        return (
            f', but of timm: timm.create_model("hf-hub:{repo}", pretrained=True) opens it, and '
            "foveal.load_upstream takes over what it knows of timm."
        )
    return f" (its config.json names no family); {_UPSTREAM}."


def whose_files(files: Sequence[str], repo: str) -> str:
    """What to say of a repository by the names of its files, after 'has no config.json'.

    Args:
        files: their paths in it.
        repo: the repository, for the command that opens it.
    """
    if "model_index.json" in files:
        return f": it is of diffusers; diffusers.DiffusionPipeline.from_pretrained({repo!r})."
    if any(name.startswith("open_clip_") and name.endswith(".json") for name in files):
        return f": it is of open_clip; open_clip.create_model_from_pretrained('hf-hub:{repo}')."
    if "model.safetensors.index.json" in files:
        return "; its weights are in several files, as foveal does not write them."
    pickles = [name for name in files if PurePosixPath(name).suffix in _PICKLES]
    if pickles:
        return (
            f": {shorten(pickles[0], 60)} is a pickle or the like, which could execute code and "
            f"is not opened; {_UPSTREAM}, and executes nothing."
        )
    if not files:
        return "; it is empty."
    shown = shorten(", ".join(sorted(files)[:3]), 90)
    return f"; it holds {shown}{', ...' if len(files) > 3 else ''}."
