"""VQVAE: tokens by the nearest entry of a codebook that follows the encoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F

from foveal.common.by_example import is_active, shared_uniform
from foveal.models.registry import register
from foveal.models.vae.base import ImageTokenizer
from foveal.models.vae.config import VQVAEConfig
from foveal.models.vae.networks import make_encoder

_TINY = 1e-5


class MovingCodebook(nn.Module):
    """Entries that are moving averages of the features nearest to them.

    van den Oord et al., "Neural Discrete Representation Learning" (2017), appendix A.1. The first
    batch gives the first entries; an entry that is hardly used moves to a feature of the batch.

    Args:
        num_tokens, dim: entries, and features of each.
        decay, revive_below: as in VQVAEConfig.
    """

    def __init__(self, num_tokens: int, dim: int, decay: float, revive_below: float) -> None:
        super().__init__()
        self.decay, self.revive_below = decay, revive_below
        self.weight: Tensor
        self.counts: Tensor
        self.started: Tensor
        self.register_buffer("weight", torch.randn(num_tokens, dim))
        self.register_buffer("counts", torch.ones(num_tokens))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def distances(self, features: Tensor) -> Tensor:
        """Squared distances (n, num_tokens) of features (n, dim), less the features' own norms."""
        return self.weight.square().sum(1) - 2 * features @ self.weight.T

    @torch.no_grad()
    def start(self, features: Tensor) -> None:
        """Take the first entries from a batch of features (n, dim)."""
        if not self.started:
            self.weight.copy_(_choose(features, len(self.weight)))
            self.started.fill_(True)

    @torch.no_grad()
    def follow(self, features: Tensor, tokens: Tensor) -> None:
        """Move towards the features (n, dim) that were given these tokens (n,)."""
        number = len(self.weight)
        seen = torch.zeros_like(self.counts).index_add_(
            0, tokens, torch.ones_like(tokens, dtype=self.counts.dtype)
        )
        sums = torch.zeros_like(self.weight).index_add_(0, tokens, features)
        _add_over_processes(seen, sums)
        # the sums of the past are counts * weight, so that they need no memory of their own
        past = (self.counts * self.decay)[:, None] * self.weight
        self.counts.mul_(self.decay).add_(seen, alpha=1 - self.decay)
        moved = (past + (1 - self.decay) * sums) / self.counts.clamp(min=_TINY)[:, None]
        self.weight.copy_(torch.where(self.counts[:, None] > _TINY, moved, self.weight))
        idle = self.counts < self.revive_below
        # no question whether any is idle: the answer would make a GPU wait
        self.weight.copy_(torch.where(idle[:, None], _choose(features, number), self.weight))
        self.counts.copy_(torch.where(idle, torch.ones_like(self.counts), self.counts))


@register({"vqvae": {}})
class VQVAE(ImageTokenizer):
    """Pictures to a grid of tokens and back, with a codebook of moving averages.

    The same convolutions as DiscreteVAE; on small data it reconstructs better after the same time,
    for it has no temperature to anneal and no noise.

    Args:
        config: a VQVAEConfig, or an image_size; or give its keywords, which win over both:
            image_size=256, num_tokens=512, codebook_dim=64, num_layers=3, num_resnet_blocks=0,
            hidden_dim=64, channels=3, smooth_l1_loss=False, normalization, commitment=0.25,
            decay=0.99, revive_below=0.1.

    Raises:
        ValueError: an unknown keyword, or sizes that make no sense.

    Example:
        >>> import torch
        >>> from foveal.models import VQVAE
        >>> vae = VQVAE(image_size=30, num_layers=2, num_tokens=64)
        >>> vae.get_codebook_indices(torch.rand(1, 3, 30, 30)).shape  # padded to 8 x 8 tokens
        torch.Size([1, 64])
    """

    family = "vqvae"
    config_class = VQVAEConfig
    settings: VQVAEConfig

    def __init__(
        self, config: VQVAEConfig | int | tuple[int, int] | None = None, /, **options: Any
    ) -> None:
        if config is not None and not isinstance(config, VQVAEConfig):
            config, options = None, {"image_size": config, **options}
        c = VQVAEConfig.resolve(config, options)
        super().__init__(c)
        self.codebook = MovingCodebook(c.num_tokens, c.codebook_dim, c.decay, c.revive_below)
        self.encoder = make_encoder(c, c.codebook_dim)

    def forward(
        self,
        img: Tensor,
        return_loss: bool = False,
        return_recons: bool = False,
        return_logits: bool = False,
    ) -> Any:
        """Encode, take the nearest entries, decode; in training the codebook follows.

        Args:
            img: (batch, channels, height, width), values from 0 to 1.
            return_loss: return the scalar loss.
            return_recons: return (loss, reconstructions).
            return_logits: return the scores (batch, num_tokens, grid height, grid width) alone.

        Returns:
            Reconstructions (batch, channels, height, width), or what was asked for.
        """
        normalized = self._prepare(img)
        if return_logits:
            return self._logits(normalized)
        features = self.encoder(normalized)
        nearest = self._nearest(features)
        # forwards the entries, backwards as if they were the features
        decoded = self._crop(self.decoder(features + (nearest - features).detach()))
        loss = decoded
        if return_loss:
            loss = self._reconstruction_loss(normalized, decoded)
            loss = loss + self.settings.commitment * F.mse_loss(features, nearest)
        return self._result(loss, self._to_pixels(decoded), return_loss, return_recons)

    def _nearest(self, features: Tensor) -> Tensor:
        """Features (batch, codebook_dim, grid height, grid width) -> the nearest entries."""
        flat = features.detach().permute(0, 2, 3, 1).flatten(0, 2).to(self.codebook.weight.dtype)
        if self.training:
            self.codebook.start(flat)
        tokens = self.codebook.distances(flat).argmin(1)
        nearest = self._embed(tokens).view(features.shape[0], *features.shape[2:], -1)
        if self.training:
            self.codebook.follow(flat, tokens)
        return nearest.permute(0, 3, 1, 2).to(features.dtype)

    def _logits(self, normalized: Tensor) -> Tensor:
        features = self.encoder(normalized)
        flat = features.permute(0, 2, 3, 1).to(self.codebook.weight.dtype)
        return (
            -self.codebook.distances(flat.flatten(0, 2))
            .unflatten(0, flat.shape[:3])
            .permute(0, 3, 1, 2)
        )

    def _embed(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.codebook.weight)


def _choose(features: Tensor, count: int) -> Tensor:
    """Some features (count, dim), drawn with replacement; the same on every process.

    In a training they are of the batch of all processes, and those that one would draw.
    """
    if is_active():
        return _choose_of_all(features, count)
    chosen = features[torch.randint(len(features), (count,), device=features.device)]
    if dist.is_available() and dist.is_initialized():
        dist.broadcast(chosen, 0)
    return chosen


def _choose_of_all(features: Tensor, count: int) -> Tensor:
    """Features (own, dim), as many on each process -> chosen ones of all (count, dim)."""
    apart = dist.is_available() and dist.is_initialized()
    rank, size = (dist.get_rank(), dist.get_world_size()) if apart else (0, 1)
    own = len(features)
    place = (torch.tensor(shared_uniform(count), dtype=torch.float64) * (own * size)).long()
    here = ((place // own) == rank).to(features.device)
    chosen = features[(place % own).to(features.device)] * here[:, None]
    _add_over_processes(chosen)
    return chosen


def _add_over_processes(*values: Tensor) -> None:
    if dist.is_available() and dist.is_initialized():
        for value in values:
            dist.all_reduce(value)
