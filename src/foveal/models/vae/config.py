"""Configurations of the models that turn pictures into tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from foveal.layers.checks import check_sizes
from foveal.models.config import ModelConfig, check_range

PACKAGE = "dalle-pytorch-1.6.6"
"""The public package whose keywords, parameter names and faults are known here."""

Normalization = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True, kw_only=True)
class ImageTokenizerConfig(ModelConfig):
    """Keywords of all models that turn pictures into tokens.

    Attributes:
        image_size: pixels, an int for a square or (height, width).
        num_tokens: entries of the codebook.
        codebook_dim: features of an entry.
        num_layers: halvings of the picture; a token stands for 2 ** num_layers pixels each way.
        num_resnet_blocks: residual blocks at the smallest size, in the encoder and the decoder.
        hidden_dim: features inside.
        channels: of the pictures.
        smooth_l1_loss: the reconstruction loss is smooth L1 in place of the squared error.
        normalization: (means, deviations) of the channels, of which the first `channels` are
            used; None for pixels as they are.
    """

    image_size: int | tuple[int, int] = 256
    num_tokens: int = 512
    codebook_dim: int = 512
    num_layers: int = 3
    num_resnet_blocks: int = 0
    hidden_dim: int = 64
    channels: int = 3
    smooth_l1_loss: bool = False
    normalization: Normalization | None = ((0.5, 0.5, 0.5, 0.0), (0.5, 0.5, 0.5, 1.0))

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = ("num_tokens", "codebook_dim", "num_layers", "hidden_dim", "channels")
        check_sizes(**{name: getattr(self, name) for name in sizes})
        check_range(0, num_resnet_blocks=self.num_resnet_blocks)
        object.__setattr__(self, "image_size", read_image_size(self.image_size))
        if self.normalization is not None:
            object.__setattr__(self, "normalization", self._read_normalization())

    def _read_normalization(self) -> Normalization:
        means, deviations = (tuple(map(float, values)) for values in self.normalization or ())
        if min(len(means), len(deviations)) < self.channels:
            raise ValueError(
                f"normalization must have a mean and a deviation for each of the channels="
                f"{self.channels}, got {self.normalization!r}; None leaves the pixels alone."
            )
        return means, deviations

    @property
    def pixels(self) -> tuple[int, int]:
        """(height, width) of a picture."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else size

    @property
    def grid(self) -> tuple[int, int]:
        """(height, width) of its tokens; what does not divide is padded."""
        step = 2**self.num_layers
        height, width = self.pixels
        return -(-height // step), -(-width // step)


def read_image_size(size: Any, name: str = "image_size") -> int | tuple[int, int]:
    """An int or a pair, checked.

    Raises:
        ValueError: neither, or not positive.
    """
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2:
        raise ValueError(f"{name} must be an int or (height, width), got {name}={size!r}.")
    check_sizes(**{f"{name}_height": sides[0], f"{name}_width": sides[1]})
    return size if isinstance(size, int) else (sides[0], sides[1])


@dataclass(frozen=True, kw_only=True)
class DiscreteVAEConfig(ImageTokenizerConfig):
    """Keywords of DiscreteVAE.

    Attributes:
        temperature: of the Gumbel softmax, unless `forward` is told another.
        straight_through: draw whole tokens, with the gradient of the soft ones.
        reinmax: a more accurate gradient for them (Liu et al., "Bridging Discrete and
            Backpropagation: Straight-Through and Beyond", 2023).
        kl_div_loss_weight: of the divergence from tokens that are all as likely, in nats a
            picture.
        compat: "dalle-pytorch-1.6.6" to reproduce its faults.
    """

    temperature: float = 0.9
    straight_through: bool = False
    reinmax: bool = False
    kl_div_loss_weight: float = 0.0
    compat: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature!r}.")
        if self.compat not in (None, PACKAGE):
            raise ValueError(f"compat must be None or {PACKAGE!r}, got compat={self.compat!r}.")


@dataclass(frozen=True, kw_only=True)
class VQVAEConfig(ImageTokenizerConfig):
    """Keywords of VQVAE.

    Attributes:
        commitment: weight of the loss that keeps the encoder near its tokens.
        decay: of the moving averages that the codebook follows.
        revive_below: an entry that is used less often than this in a batch, on average, moves to
            a feature of the batch; 0 means never.
    """

    codebook_dim: int = 64
    commitment: float = 0.25
    decay: float = 0.99
    revive_below: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(0, commitment=self.commitment, revive_below=self.revive_below)
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, got decay={self.decay!r}.")
