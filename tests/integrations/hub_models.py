"""Small models, and what the tests of the Hub ask of them and of their files."""

from __future__ import annotations

from pathlib import Path

import torch
from hub_server import sha256

from foveal.models import TransformerLM

SMALL = {"dim": 8, "depth": 1, "heads": 2, "dim_head": 4, "num_tokens": 5}
ONE_LINE = r"\A[^\n]{20,}\Z"


def model(seed=0, dtype=torch.float32, **options):
    torch.manual_seed(seed)
    return TransformerLM(**{**SMALL, **options}).to(dtype).eval()


def equal(one, other):
    """Whether two models are the same: configuration, names, dtypes and every bit."""
    left, right = one.state_dict(), other.state_dict()
    assert list(left) == list(right)
    return type(one) is type(other) and one.settings == other.settings and all(
        left[name].dtype == right[name].dtype and left[name].equal(right[name]) for name in left
    )  # fmt: skip


def saved(one, folder) -> dict[str, bytes]:
    """The files of a model, for `Hub.put`."""
    one.save_pretrained(folder)
    return {
        "config_json": (folder / "config.json").read_bytes(),
        "model_safetensors": (folder / "model.safetensors").read_bytes(),
    }


def leftovers(folder: Path) -> list[Path]:
    """What a cache holds besides whole files, and files that are not what they are called."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    odd = [path for path in files if path.suffix == ".incomplete"]
    large = [path for path in files if len(path.name) == 64]
    return odd + [path for path in large if sha256(path.read_bytes()) != path.name]
