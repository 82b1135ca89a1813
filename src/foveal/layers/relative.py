"""Relative attention of Transformer-XL, for any pattern.

The logit of query i and key j is ((q_i + u) . k_j + (q_i + w) . R s(i - j)) / sqrt(dim_head), with
sinusoids s of the distance, a projection R in each layer, and two vectors u and w for each head
that all layers share (Dai et al., "Transformer-XL", 2019; in Hourglass: Nawrot et al., 2021).

Sines and cosines of a difference are products of those of its ends, so the second term is a dot
product of turned queries with the sinusoids of key positions: with these as further features of
queries and keys, any pattern and implementation computes it without a matrix of distances. Under
dense attention that matrix is the cheaper way, and is built by shifting rows.

Legend of shapes: B batch, H heads, N queries, M keys, D features of a head, S sinusoids.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.common.arguments import checked
from foveal.layers.checks import check_sizes
from foveal.layers.weights import dtype_of, matrix
from foveal.patterns import Full, Pattern
from foveal.patterns.subclasses import is_a


class Relative(nn.Module):
    """What the relative attention layers of a model share: u, w and the sinusoids.

    Args:
        dim: sinusoids (S), an even number; the features of a token in the authors' code.
        heads, dim_head: of the attention layers.

    Raises:
        ValueError: dim is odd, or a size is not positive.
    """

    @checked
    def __init__(self, dim: int, heads: int, dim_head: int) -> None:
        super().__init__()
        check_sizes(dim=dim, heads=heads, dim_head=dim_head)
        if dim % 2:
            raise ValueError(f"dim must be even for relative positions, got {dim=}.")
        self.dim, self.heads, self.dim_head = dim, heads, dim_head
        # the content and the position bias of the queries, almost zero as in the authors' code
        self.u = nn.Parameter(torch.randn(heads, dim_head) * 1e-6)
        self.w = nn.Parameter(torch.randn(heads, dim_head) * 1e-6)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, heads={self.heads}, dim_head={self.dim_head}"

    def sinusoids(self, places: Tensor) -> Tensor:
        """Sines, then cosines, of positions of any shape: (..., S) in float32 at least."""
        exact = torch.float32 if places.device.type == "mps" else torch.float64
        half = torch.arange(0, self.dim, 2, dtype=exact, device=places.device) / self.dim
        angles = places.to(exact)[..., None] * 10_000.0**-half
        waves = torch.cat((angles.sin(), angles.cos()), -1)
        return waves.to(torch.promote_types(self.u.dtype, torch.float32))


class RelativeTerms(nn.Module):
    """The part of one layer: its projection of sinusoids, and the logits that follow from it.

    Args:
        shared: u and w, owned by the model; here they are only looked up.
    """

    @checked
    def __init__(self, shared: Relative) -> None:
        super().__init__()
        # in a list, so that the shared weights do not count as the layer's own
        self._shared = [shared]
        self.to_r = nn.Linear(shared.dim, shared.heads * shared.dim_head, bias=False)

    @property
    def shared(self) -> Relative:
        """Where u, w and the sinusoids live."""
        return self._shared[0]

    def relate(
        self,
        q: Tensor,
        k: Tensor,
        pattern: Pattern,
        stride: int,
        places: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """What one sequence attends with: queries (B, H, N, D or D + S), keys as wide, and a bias
        (B, H, N, N) or None. Tokens stand `stride` positions apart; at `places` (N,) where they
        are part of a longer sequence, whose other keys no bias of a row would know."""
        if places is None:
            # rows of all pairs are moved by their places, which no trace does with symbols
            if is_a(pattern, Full) and not torch.compiler.is_exporting():
                bias = self.distance_logits(q, stride, pattern.causal) * self.shared.dim_head**-0.5
                return self.content(q), k, bias
            places = torch.arange(q.shape[2], device=q.device)
        return *self.extended(q, k, places * stride, places * stride), None

    def newest(
        self, q: Tensor, position: int, stride: int, key_stride: int = 1
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """One query (B, H, 1, D) at a position, and the bias of keys at places (M,): (B, H, M).

        Keys stand `key_stride` positions apart, and positions `stride` of the sinusoids'.
        """

        def bias(places: Tensor) -> Tensor:
            distances = (position - places.to(q.device) * key_stride) * stride
            return self.logits(q, distances) * self.shared.dim_head**-0.5

        return self.content(q), bias

    def between(
        self, stride: int, key_stride: int = 1
    ) -> Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
        """`extended`, for queries and keys at places of one sequence, or of two: positions stand
        `stride` of the sinusoids' apart, and keys `key_stride` positions."""

        def relate(q: Tensor, k: Tensor, q_at: Tensor, k_at: Tensor) -> tuple[Tensor, Tensor]:
            return self.extended(q, k, q_at * stride, k_at * (key_stride * stride))

        return relate

    def content(self, q: Tensor) -> Tensor:
        """q + u: (B, H, N, D)."""
        return q + self.shared.u[:, None].to(q.dtype)

    def amplitudes(self, q: Tensor) -> Tensor:
        """What each query gives for each sinusoid of the distance: (B, H, N, S)."""
        weight = matrix(self.to_r, self.shared.dim)
        weight = weight.unflatten(0, (self.shared.heads, -1))  # (H, D, S)
        return (q + self.shared.w[:, None].to(q.dtype)) @ weight.to(q.dtype)

    def turned(self, q: Tensor, places: Tensor) -> Tensor:
        """Features of queries at `places` (N,) whose dot product with the sinusoids of a key's
        position is the position's logit: (B, H, N, S)."""
        by_sin, by_cos = self.amplitudes(q).chunk(2, -1)
        sin, cos = self.shared.sinusoids(places).to(q.dtype).chunk(2, -1)
        return torch.cat((by_cos * sin - by_sin * cos, by_sin * sin + by_cos * cos), -1)

    def extended(
        self, q: Tensor, k: Tensor, q_places: Tensor, k_places: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Queries and keys whose dot product is the whole logit: (B, H, N or M, D + S)."""
        waves = self.shared.sinusoids(k_places).to(k.dtype).expand(*k.shape[:2], -1, -1)
        return (
            torch.cat((self.content(q), self.turned(q, q_places)), -1),
            torch.cat((k, waves), -1),
        )

    def distance_logits(self, q: Tensor, stride: int, causal: bool) -> Tensor:
        """The position's logits of all pairs of one sequence (B, H, N, N), unscaled.

        Each row holds the logits by distance; shifting row i by i puts them under their keys.
        Later keys of a causal sequence get those of other distances, which the mask hides.
        """
        length = q.shape[2]
        last = 0 if causal else 1 - length
        distances = torch.arange(length - 1, last - 1, -1, device=q.device) * stride
        r = self.to_r(self.shared.sinusoids(distances).to(dtype_of(self.to_r)))
        r = r.unflatten(-1, (self.shared.heads, -1)).transpose(0, 1).to(q.dtype)
        by_distance = (q + self.shared.w[:, None].to(q.dtype)) @ r.mT  # (B, H, N, distances)
        return _shift_rows(by_distance, length)

    def logits(self, q: Tensor, distances: Tensor) -> Tensor:
        """The position's logits of one query over keys at distances (M,): (B, H, M), unscaled."""
        waves = self.shared.sinusoids(distances).to(q.dtype)
        return (self.amplitudes(q) @ waves.mT)[:, :, 0]


def _shift_rows(x: Tensor, length: int) -> Tensor:
    """x[..., i, c] -> y[..., i, j] = x[..., i, length - 1 - i + j] for j < length, in one view.

    Columns stand for distances length - 1, length - 2, ...; there are `length` of them (causal),
    or 2 length - 1.
    """
    width = x.shape[-1] + 1
    flat = F.pad(x, (0, 1)).flatten(-2)
    # row i starts i places earlier in rows that are one shorter
    flat = flat[..., length - 1 :]
    missing = length * (width - 1) - flat.shape[-1]
    flat = F.pad(flat, (0, max(0, missing)))[..., : length * (width - 1)]
    return flat.unflatten(-1, (length, width - 1))[..., :length]
