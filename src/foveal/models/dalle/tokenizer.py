"""What DALLE needs of the model that turns pictures into tokens, and how the two are joined."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from foveal.models.base import Model
from foveal.models.dalle.config import DALLEConfig
from foveal.models.registry import family


class ImageTokenizerLike(Protocol):
    """Pictures to a grid of tokens, and back."""

    num_tokens: int
    image_size: int | tuple[int, int]
    num_layers: int

    def get_codebook_indices(self, images: Tensor) -> Tensor:
        """(batch, channels, height, width) in [0, 1] -> (batch, tokens) int."""

    def decode(self, img_seq: Tensor) -> Tensor:
        """(batch, tokens) int -> (batch, channels, height, width) in [0, 1]."""


NEEDED = ("num_tokens", "image_size", "num_layers", "get_codebook_indices", "decode")


def grid_of(vae: ImageTokenizerLike) -> tuple[int, int]:
    """(height, width) of the tokens of a picture."""
    known = getattr(vae, "grid", None)
    if known is not None:
        return known[0], known[1]
    size = vae.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return height // 2**vae.num_layers, width // 2**vae.num_layers


def config_with(config: DALLEConfig, vae: Any, given: Collection[str]) -> DALLEConfig:
    """The configuration with the numbers of the VAE.

    Args:
        given: keywords that were given, and must be those of the VAE.

    Raises:
        ValueError: what was given as VAE is none, or has other numbers.
    """
    missing = [name for name in NEEDED if not hasattr(vae, name)]
    if missing:
        raise ValueError(f"vae must have {', '.join(sorted(missing))}, got {type(vae).__name__}.")
    wanted = {"num_image_tokens": vae.num_tokens, "image_grid": grid_of(vae)}
    found = {"num_image_tokens": config.num_image_tokens, "image_grid": config.grid}
    for name, value in wanted.items():
        if name in given and found[name] != value:
            raise ValueError(
                f"{name} must be that of the VAE, {value}, got {name}={found[name]}; leave it out."
            )
    described = None
    if isinstance(vae, Model):
        described = {"family": vae.family, "config": vae.settings.to_json()}
    return dataclasses.replace(config, **wanted, vae=described)


def from_description(described: Mapping[str, Any]) -> Model:
    """The VAE that a configuration describes, with random weights.

    Raises:
        ValueError: it describes none.
    """
    name, options = described.get("family"), described.get("config")
    if not isinstance(name, str) or not isinstance(options, Mapping):
        raise ValueError("vae must be a mapping with a family and its config, got other entries.")
    cls = family(name)
    return cls(cls.config_class.from_json(dict(options)))


def attach(model: nn.Module, vae: Any) -> None:
    """Give a model its frozen VAE; only foveal's own become a part of it."""
    if isinstance(vae, Model):
        model.vae = vae.requires_grad_(False).eval()
    else:
        object.__setattr__(model, "vae", vae)  # unseen by state_dict() and to()
