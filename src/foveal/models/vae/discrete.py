"""DiscreteVAE: tokens by Gumbel softmax."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveal.common.by_example import is_active, uniform
from foveal.layers.weights import table
from foveal.models.registry import register
from foveal.models.vae.base import ImageTokenizer
from foveal.models.vae.config import DiscreteVAEConfig
from foveal.models.vae.networks import make_encoder


@register({"discrete_vae": {}})
class DiscreteVAE(ImageTokenizer):
    """Pictures to a grid of tokens and back, trained through a Gumbel softmax.

    Ramesh et al., "Zero-Shot Text-to-Image Generation" (2021), section 2.1, with the architecture,
    the keywords and the parameter names of dalle-pytorch.

    Differs from dalle-pytorch 1.6.6 in: any rectangular size; the divergence is a mean over the
    pictures, so that it does not grow with the batch; what is decoded is in [0, 1], as the
    pictures that were encoded. compat="dalle-pytorch-1.6.6" takes the last two back.

    Args:
        config: a DiscreteVAEConfig, or an image_size; or give its keywords, which win over both:
            image_size=256, num_tokens=512, codebook_dim=512, num_layers=3, num_resnet_blocks=0,
            hidden_dim=64, channels=3, smooth_l1_loss=False, temperature=0.9,
            straight_through=False, reinmax=False, kl_div_loss_weight=0., normalization.

    Raises:
        ValueError: an unknown keyword, or sizes that make no sense.

    Example:
        >>> import torch
        >>> from foveal.models import DiscreteVAE
        >>> vae = DiscreteVAE(image_size=(32, 48), num_layers=2, num_tokens=64)
        >>> tokens = vae.get_codebook_indices(torch.rand(1, 3, 32, 48))
        >>> tokens.shape, vae.decode(tokens).shape
        (torch.Size([1, 96]), torch.Size([1, 3, 32, 48]))
    """

    family = "discrete_vae"
    config_class = DiscreteVAEConfig
    settings: DiscreteVAEConfig

    def __init__(
        self, config: DiscreteVAEConfig | int | tuple[int, int] | None = None, /, **options: Any
    ) -> None:
        if config is not None and not isinstance(config, DiscreteVAEConfig):
            config, options = None, {"image_size": config, **options}
        c = DiscreteVAEConfig.resolve(config, options)
        super().__init__(c)
        self.codebook = nn.Embedding(c.num_tokens, c.codebook_dim)
        self.encoder = make_encoder(c, c.num_tokens)
        self.temperature = c.temperature

    def forward(
        self,
        img: Tensor,
        return_loss: bool = False,
        return_recons: bool = False,
        return_logits: bool = False,
        temp: float | None = None,
    ) -> Any:
        """Encode, draw tokens, decode.

        Args:
            img: (batch, channels, height, width), values from 0 to 1.
            return_loss: return the scalar loss.
            return_recons: return (loss, reconstructions).
            return_logits: return the scores (batch, num_tokens, grid height, grid width) alone.
            temp: temperature of the Gumbel softmax.

        Returns:
            Reconstructions (batch, channels, height, width), or what was asked for.
        """
        normalized = self._prepare(img)
        logits = self._logits(normalized)
        if return_logits:
            return logits
        shares = self._draw(logits, self.temperature if temp is None else temp)
        features = torch.einsum("bnhw,nd->bdhw", shares, table(self.codebook, 0, self.num_tokens))
        decoded = self._crop(self.decoder(features))
        loss = self._loss(normalized, decoded, logits) if return_loss else decoded
        if self.settings.compat is None:
            decoded = self._to_pixels(decoded)
        return self._result(loss, decoded, return_loss, return_recons)

    def decode(self, img_seq: Tensor) -> Tensor:
        """Pictures (batch, channels, height, width) in [0, 1] of tokens (batch, grid tokens).

        Under compat they stay normalized, as in the package.

        Raises:
            ValueError: not as many tokens as the grid has.
        """
        return super().decode(img_seq) if self.settings.compat is None else self._decode(img_seq)

    def _logits(self, normalized: Tensor) -> Tensor:
        return self.encoder(normalized)

    def _embed(self, tokens: Tensor) -> Tensor:
        return self.codebook(tokens)

    def _draw(self, logits: Tensor, temperature: float) -> Tensor:
        """Shares of the tokens (batch, num_tokens, grid height, grid width), summing to 1."""
        c = self.settings
        shares = _gumbel_softmax(logits, temperature, c.straight_through)
        if c.straight_through and c.reinmax:
            return _reinmax(logits, shares.detach(), temperature)
        return shares

    def _loss(self, normalized: Tensor, decoded: Tensor, logits: Tensor) -> Tensor:
        loss = self._reconstruction_loss(normalized, decoded)
        if not self.settings.kl_div_loss_weight:
            return loss
        logs = logits.log_softmax(1)
        divergence = (logs.exp() * (logs + math.log(self.num_tokens))).sum()
        if self.settings.compat is None:
            divergence = divergence / len(logits)
        return loss + self.settings.kl_div_loss_weight * divergence


def _gumbel_softmax(logits: Tensor, temperature: float, hard: bool) -> Tensor:
    """torch's over the channels of logits (batch, channels, ...); in a training, by example."""
    if not is_active():
        return F.gumbel_softmax(logits, tau=temperature, dim=1, hard=hard)
    noise = -(-uniform(logits, *logits.shape[1:]).log()).log()
    soft = ((logits + noise.to(logits.dtype)) / temperature).softmax(1)
    if not hard:
        return soft
    one = torch.zeros_like(soft).scatter_(1, soft.argmax(1, keepdim=True), 1.0)
    return one - soft.detach() + soft


def _reinmax(logits: Tensor, drawn: Tensor, temperature: float) -> Tensor:
    """The drawn tokens with a gradient of second order; algorithm 2 of Liu et al. (2023)."""
    plain = logits.softmax(1)
    mixed = (drawn + (logits / temperature).softmax(1)) / 2
    mixed = ((mixed.clamp(min=1e-20).log() - logits).detach() + logits).softmax(1)
    slope = 2 * mixed - 0.5 * plain
    return slope - slope.detach() + drawn
