"""The names of dalle-pytorch's pretrained picture tokenizers.

Their weights are pickled code (OpenAI's) or belong to a library of their own (VQGAN's), so nothing
is computed here: hand the package's own object, or any object with the same methods, to
DALLE(vae=...), or train a foveal.VQVAE.
"""

from __future__ import annotations

from typing import Any, NoReturn

__all__ = ["OpenAIDiscreteVAE", "VQGanVAE"]


def _refuse(name: str) -> NoReturn:
    raise NotImplementedError(
        f"{name} downloads weights that only its own code can read; give DALLE(vae=...) the "
        f"object of dalle_pytorch.vae.{name}, a DiscreteVAE, or a foveal.VQVAE."
    )


class OpenAIDiscreteVAE:
    """For isinstance; cannot be made: see the module."""

    def __init__(self) -> None:
        _refuse("OpenAIDiscreteVAE")


class VQGanVAE:
    """For isinstance; cannot be made: see the module."""

    def __init__(self, vqgan_model_path: Any = None, vqgan_config_path: Any = None) -> None:
        _refuse("VQGanVAE")
