"""Attention as h-transformer-1d 0.1.9 computes it, for weights that were trained so.

| what the package does | corrected |
|---|---|
| each level subtracts its own largest logit | one softmax over all levels |
| sums values of a cluster, but counts it as one key | weighs a cluster by its tokens |
| encoder: the halves of the sequence never meet | every pair meets |
| decoder: a coarse level serves the last token of a cluster only | serves every token |
| positions turn the values too | queries and keys only |
| zeros are appended up to a power of two, and attended to | masked |
| decoder ignores the mask; shifts tokens as a decoder in both directions | right for both |
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.common.memo import sizes_of
from foveal.layers.checks import head_size, join_heads, split_heads

EPS = 1e-8


class PackageAttention(nn.Module):
    """The package's attention, faults included; its parameters have our names.

    Args:
        dim, heads, dim_head, block_size, causal: as in HAttention1D.

    Raises:
        ValueError: block_size is no power of two, which the package cannot compute.
    """

    def __init__(
        self, dim: int, heads: int, dim_head: int | None, block_size: int, causal: bool
    ) -> None:
        super().__init__()
        if block_size < 1 or block_size & (block_size - 1):
            raise ValueError(
                f"block_size must be a power of two for h-transformer-1d, got {block_size}; "
                "compat=None takes any even one."
            )
        self.heads, self.dim_head = heads, head_size(dim, heads, dim_head)
        self.block_size, self.causal, self.eps = block_size, causal, EPS
        self.to_qkv = nn.Linear(dim, 3 * heads * self.dim_head, bias=False)
        self.to_out = nn.Linear(heads * self.dim_head, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(batch, tokens, dim) -> same."""
        length = sizes_of(x)[1]
        padded = 1 << (length - 1).bit_length()
        x = F.pad(x, (0, 0, 0, padded - length))
        q, k, v = (self.turned(split_heads(t, self.dim_head)) for t in self.to_qkv(x).chunk(3, -1))
        q = q * self.dim_head**-0.5
        levels = (padded // self.block_size).bit_length() - (2 if self.causal else 3)
        self._check(padded, levels)
        if self.causal:
            out = self._decoder(q, k, v, levels)
        else:
            real = None if mask is None else F.pad(mask, (0, padded - length))[:, None]
            out = self._encoder(q, k, v, real, levels)
        return self.to_out(join_heads(out)[:, :length])

    def turned(self, x: Tensor) -> Tensor:
        """Rotary positions on pairs of neighbouring features: x (batch, heads, n, dim_head)."""
        return turn(x, positions(x.shape[-2], x.shape[-1], x.device))

    def _check(self, padded: int, levels: int) -> None:
        least = self.block_size if self.causal else 4 * self.block_size
        if padded < least:
            raise ValueError(
                f"h-transformer-1d needs sequences that fill {least} places when padded to a "
                f"power of two, got {padded}; compat=None takes any length."
            )

    # -- encoder ----------------------------------------------------------------------------

    def _encoder(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, levels: int
    ) -> Tensor:
        """q, k, v (batch, heads, n, dim_head); mask (batch, 1, n)."""
        total, weight = self._level(q, k, v, mask, sibling=False)
        for level in range(levels + 1):
            if level:
                q, k = (_coarser(t, mask, mean=True) for t in (q, k))
                v = _coarser(v, mask, mean=False)
                mask = None if mask is None else mask.unflatten(-1, (-1, 2)).any(-1)
            more, count = self._level(q, k, v, mask, sibling=True)
            total = total + more.repeat_interleave(1 << level, 2)
            weight = weight + count.repeat_interleave(1 << level, 2)
        return total / (weight + self.eps)[..., None]

    def _level(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, sibling: bool
    ) -> tuple[Tensor, Tensor]:
        """Sums of values and of weights over one block: the own, or its sibling."""
        q, k, v = (self._blocks(t) for t in (q, k, v))
        if sibling:
            k, v = _swap(k), _swap(v)
        logits = q @ k.mT
        if mask is not None:
            own = mask.unflatten(-1, (-1, self.block_size))
            other = _swap(own) if sibling else own
            pairs = own[..., :, None] & other[..., None, :]
            logits = logits.masked_fill(~pairs, -torch.finfo(logits.dtype).max)
        return _sums(logits, v)

    # -- decoder ----------------------------------------------------------------------------

    def _decoder(self, q: Tensor, k: Tensor, v: Tensor, levels: int) -> Tensor:
        if levels < 0:  # with a single block the package has no level at all
            return torch.zeros_like(v)
        length = q.shape[2]
        here = torch.arange(length, device=q.device)
        future = torch.ones(self.block_size, self.block_size, device=q.device).triu(1).bool()
        logits = self._blocks(q) @ self._blocks(k).mT
        logits = logits.masked_fill(future, -torch.finfo(logits.dtype).max)
        total, weight = _sums(logits, self._blocks(v))
        for level in range(1, levels + 1):
            q, k = (_coarser(t, None, mean=True) for t in (q, k))
            v = _coarser(v, None, mean=False)
            more, count = self._left_sibling(q, k, v)
            last = here % (1 << level) == (1 << level) - 1
            more = more.repeat_interleave(1 << level, 2)
            count = count.repeat_interleave(1 << level, 2)
            total = total + more.masked_fill(~last[:, None], 0.0)
            weight = weight + count.masked_fill(~last, 0.0)
        return total / (weight + self.eps)[..., None]

    def _left_sibling(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Every second block reads the one before it; the others read nothing."""
        q, k, v = (self._blocks(t) for t in (q, k, v))
        total, weight = _sums(q[:, :, 1::2] @ k[:, :, ::2].mT, v[:, :, ::2])
        total = total.unflatten(2, (-1, self.block_size))
        weight = weight.unflatten(2, (-1, self.block_size))
        total = torch.stack((torch.zeros_like(total), total), 3).flatten(2, 4)
        return total, torch.stack((torch.zeros_like(weight), weight), 3).flatten(2, 4)

    def _blocks(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (-1, self.block_size))


def positions(length: int, dim: int, device: torch.device) -> Tensor:
    """Angles (length, dim / 2) of rotary positions, float32."""
    rates = 10_000.0 ** (-torch.arange(0, dim, 2, device=device).float() / dim)
    return torch.arange(length, device=device).float()[:, None] * rates


def turn(x: Tensor, angles: Tensor) -> Tensor:
    """Features 2i and 2i + 1 of x (batch, heads, n, dim) turned by angles (n, dim / 2)."""
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1).flatten(-2)


def _sums(logits: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted values (batch, heads, n, dim_head) and weights (batch, heads, n) of blocks."""
    weights = (logits - logits.amax(-1, keepdim=True)).exp()
    return (weights @ v).flatten(2, 3), weights.sum(-1).flatten(2, 3)


def _swap(x: Tensor) -> Tensor:
    """Siblings change places: x (batch, heads, blocks, ...)."""
    return x.unflatten(2, (-1, 2)).flip(3).flatten(2, 3)


def _coarser(x: Tensor, mask: Tensor | None, mean: bool) -> Tensor:
    """Sum or mean of pairs, of real ones where there is a mask (batch, 1, n)."""
    pairs = x.unflatten(2, (-1, 2))
    if mask is None:
        return pairs.mean(3) if mean else pairs.sum(3)
    real = mask.unflatten(-1, (-1, 2))[..., None]
    total = pairs.masked_fill(~real, 0.0).sum(3)
    return total / real.sum(3).clamp(min=1) if mean else total
