"""A VQModel of diffusers as the VAE of a DALLE: its codes are the tokens of a picture."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from foveal.common.packages import need
from foveal.common.words import shorten
from foveal.layers.weights import dtype_of
from foveal.models.base import Model
from foveal.models.config import ModelConfig, check_keywords, check_magnitude
from foveal.models.pictures import as_pixels
from foveal.models.registry import register
from foveal.models.vae.coder import as_grid, check_pictures, check_value_range
from foveal.models.vae.config import read_image_size
from foveal.patterns.sizes import pair

need("diffusers", "foveal.integrations.diffusers")

from diffusers import VQModel  # noqa: E402

__all__ = ["VQModelVAE", "VQModelVAEConfig"]

_KNOWN = tuple(inspect.signature(VQModel.__init__).parameters)[1:]
"""The keywords of a VQModel; its `config` has more, which are notes."""


@dataclass(frozen=True, kw_only=True)
class VQModelVAEConfig(ModelConfig):
    """Keywords of VQModelVAE.

    Attributes:
        image_size: pixels of the pictures, an int for a square or (height, width).
        vq: keywords of diffusers' VQModel.
        value_range: what the VQModel has for black and white; pictures here are from 0 to 1.
    """

    image_size: int | tuple[int, int] = 256
    vq: Mapping[str, Any] | None = None
    value_range: tuple[float, float] = (-1.0, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "image_size", read_image_size(self.image_size))
        vq = dict(self.vq or {})
        check_keywords("VQModel", vq, _KNOWN)
        for name, value in vq.items():
            check_magnitude(name, value)
        object.__setattr__(self, "vq", vq)
        check_value_range(self.value_range)

    @property
    def pixels(self) -> tuple[int, int]:
        """(height, width) of a picture."""
        return pair(self.image_size, "image_size")

    def to_json(self) -> dict[str, Any]:
        """The same in values that JSON knows."""
        size = self.image_size
        return {
            "image_size": size if isinstance(size, int) else list(size),
            "vq": json.loads(json.dumps(self.vq)),
            "value_range": list(self.value_range),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The configuration that `to_json` described."""
        rest = {name: value for name, value in values.items() if name != "vq"}
        return cls.resolve(super().from_json(rest), {"vq": values.get("vq")})


@register({})
class VQModelVAE(Model):
    """Pictures to the codes of a diffusers VQModel, and back.

    It is saved like any of our models, alone or inside of a DALLE: the keywords of the VQModel and
    its weights. Reading it makes a VQModel of them, strictly, and executes nothing.

    Args:
        model: a VQModel, which becomes a part of this one; or a VQModelVAEConfig, for one with
            random weights.
        options: keywords of VQModelVAEConfig; image_size is the VQModel's sample_size unless
            given.

    Attributes:
        image_size, num_tokens, num_layers, channels, grid: as of a `VQVAE`.

    Raises:
        ValueError: no VQModel, or pictures that its halvings do not divide.
    """

    family = "diffusers_vq"
    config_class = VQModelVAEConfig
    settings: VQModelVAEConfig

    model: Any

    def __init__(self, model: Any = None, /, **options: Any) -> None:
        super().__init__()
        config = model if isinstance(model, VQModelVAEConfig) else None
        if model is not None and config is None:
            options = {**_described(model), **options}
        c = self.settings = VQModelVAEConfig.resolve(config, options)
        self.model = _made(c.vq or {}) if model is config else model
        found = self.model.config
        self.num_layers = len(found.block_out_channels) - 1
        self.channels, self.image_size = int(found.in_channels), c.image_size
        self.num_tokens = int(self.model.quantize.re_embed)
        self.grid = self._find_grid()
        if found.out_channels != found.in_channels:
            raise ValueError(
                f"the VQModel must give back what it takes, got in_channels={found.in_channels} "
                f"and out_channels={found.out_channels}."
            )

    @torch.no_grad()
    def get_codebook_indices(self, images: Tensor) -> Tensor:
        """The codes of pictures, row by row.

        Args:
            images: (batch, channels, height, width), values from 0 to 1; or bytes.

        Returns:
            (batch, grid height * grid width) int64: those of the VQModel's own quantizer.

        Raises:
            ValueError: pictures of another size than image_size.
        """
        check_pictures(images, self.channels, self.settings.pixels)
        low, high = self.settings.value_range
        dtype = dtype_of(self.model.quant_conv)
        pixels = as_pixels("images", images, dtype).to(dtype) * (high - low) + low
        codes = self.model.quantize(self.model.encode(pixels).latents)[2][2]
        return codes.reshape(len(images), -1)

    def decode(self, img_seq: Tensor) -> Tensor:
        """Pictures (batch, channels, height, width) in [0, 1] of codes (batch, grid tokens).

        Raises:
            ValueError: not as many codes as the grid has.
        """
        codes = as_grid(img_seq, self.grid)
        shape = (*codes.shape, self.model.quantize.vq_embed_dim)
        entries: Tensor = codes.flatten()
        if not self.model.config.lookup_from_codebook:  # else it looks them up itself
            entries = self.model.quantize.get_codebook_entry(entries, shape)
        found = self.model.decode(entries, force_not_quantize=True, shape=shape).sample
        low, high = self.settings.value_range
        return ((found.float() - low) / (high - low)).clamp(0.0, 1.0)

    def example_inputs(self, length: Any = None) -> tuple[Tensor, ...]:
        """A picture without values."""
        size = self.settings.pixels if length is None else pair(length, "length")
        dtype = dtype_of(self.model.quant_conv)
        return (torch.empty(1, self.channels, *size, dtype=dtype, device="meta"),)

    def forward(self, images: Tensor) -> Tensor:
        """Pictures (batch, channels, height, width) in [0, 1] as they come back."""
        return self.decode(self.get_codebook_indices(images))

    def _find_grid(self) -> tuple[int, int]:
        step = 2**self.num_layers
        height, width = self.settings.pixels
        if height % step or width % step:
            raise ValueError(
                f"image_size must be a multiple of {step}, by which the VQModel halves pictures, "
                f"got image_size={self.image_size}."
            )
        return height // step, width // step


def _made(vq: Mapping[str, Any]) -> Any:
    """A VQModel of keywords that may come from a file; ValueError if they make none."""
    try:
        return VQModel(**vq)
    except Exception as error:  # whatever diffusers raises
        reason = shorten(f"{type(error).__name__}: {error}", 150)
        raise ValueError(
            f"vq must be keywords of a VQModel, which refuses them: {reason}"
        ) from error


def _described(model: Any) -> dict[str, Any]:
    """The configuration of a VQModel; ValueError for anything else."""
    if not isinstance(model, VQModel):
        raise ValueError(
            f"model must be a diffusers.VQModel, got {type(model).__name__}; any object with "
            "encode and decode: foveal.models.vae.CoderVAE."
        )
    vq = {name: model.config[name] for name in _KNOWN if name in model.config}
    return {"vq": vq, "image_size": model.config.sample_size}
