"""From a fine sequence to a coarse one and back.

A group of k fine tokens becomes one coarse token. In a causal model the fine sequence is shifted
by k - 1 first: coarse token c pools the fine tokens c k - k + 1 ... c k, so that it is known when
fine token c k is, and every fine token i may read the coarse token i // k. It is the smallest
shift that leaks nothing (Nawrot et al., "Hierarchical Transformers Are More Efficient Language
Models", 2021, appendix A.2).

Shapes: B batch, N fine tokens, M coarse tokens, K tokens of a group, D features.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.layers.linear import project
from foveal.layers.packing import Context


class Groups(NamedTuple):
    """Fine tokens gathered into groups.

    x: (B, M, K, D), zeros where no real token stands.
    real: (B or 1, M, K) bool.
    """

    x: Tensor
    real: Tensor


def gather_groups(x: Tensor, mask: Tensor | Context | None, factor: int, causal: bool) -> Groups:
    """Cut x (B, N, D) into M = ceil(N / K) groups; mask (B, N) True = real.

    Of a part of a sequence these are the groups whose coarse token stands at a token of the part,
    which are fine tokens 0, K, 2 K, ...
    """
    if isinstance(mask, Context):
        return _groups_within(x, mask, factor, factor - 1 if causal else 0)
    length = x.shape[1]
    num_groups = (length + factor - 1) // factor
    before = factor - 1 if causal else 0
    after = num_groups * factor - before - length  # negative: the last tokens are in no group yet
    if mask is None:
        place = torch.arange(num_groups * factor, device=x.device)[None] - before
        real = (place >= 0) & (place < length)
    else:
        x = x.masked_fill(~mask[..., None], 0.0)  # padding may hold anything, even NaN
        real = F.pad(mask, (before, after))
    x = F.pad(x, (0, 0, before, after))
    return Groups(x.unflatten(1, (-1, factor)), real.unflatten(1, (-1, factor)))


def _groups_within(x: Tensor, place: Context, factor: int, before: int) -> Groups:
    """`gather_groups` of tokens (B, N, D) of which others have the neighbours, moved `before`."""
    if place.mask is not None:
        x = x.masked_fill(~place.mask[..., None], 0.0)
        x = torch.cat((x, place.mask[..., None].to(x.dtype)), -1)
    coarse = ((-(-a // factor), -(-b // factor)) for a, b in place.spans)
    wanted = [(low * factor - before, high * factor - before) for low, high in coarse]
    x = place.rows(x, wanted)
    first = -(-place.first // factor) * factor - before
    at = torch.arange(first, first + x.shape[1], device=x.device)[None]
    real = (at >= 0) & (at < place.length)
    if place.mask is not None:
        x, real = x[..., :-1], real & (x[..., -1] > 0)
    sizes = (x.shape[1] // factor, factor)  # there may be none
    return Groups(x.unflatten(1, sizes), real.unflatten(1, sizes))


def speaking(x: Tensor, above: Context, place: Context, factor: int) -> tuple[Tensor, int]:
    """The coarse tokens that speak to the fine ones of a part of a sequence.

    Args:
        x: (B, own coarse tokens, D).
        above, place: where the coarse tokens are, and where the fine ones.

    Returns:
        (B, coarse tokens, D), and how many tokens of the first group are not here.
    """
    wanted = [(a // factor, -(-b // factor)) for a, b in place.spans]
    return above.rows(x, wanted), place.first % factor


class NaiveShorten(nn.Module):
    """The mean of the real tokens of each group."""

    def forward(self, groups: Groups) -> Tensor:
        """-> (B, M, D); zeros for a group without real tokens."""
        count = groups.real.sum(2, keepdim=True).clamp(min=1)
        return groups.x.sum(2) / count.to(groups.x.dtype)


class LinearShorten(nn.Module):
    """A projection of the tokens of each group side by side; zeros stand for missing ones."""

    def __init__(self, dim: int, factor: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim * factor, dim)

    def forward(self, groups: Groups) -> Tensor:
        """-> (B, M, D)"""
        return project(self.proj, groups.x.flatten(2))


class NaiveUpsample(nn.Module):
    """Every coarse token once for each token of its group."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, D) -> (B, M K, D)"""
        return x.repeat_interleave(self.factor, dim=1)


class LinearUpsample(nn.Module):
    """A projection of every coarse token to the tokens of its group."""

    def __init__(self, dim: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.proj = nn.Linear(dim, dim * factor)

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, D) -> (B, M K, D)"""
        return project(self.proj, x).unflatten(2, (self.factor, -1)).flatten(1, 2)
