"""Self-attention over a pattern, turned by positions that are given with every call."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from foveal.caches import AttentionCache
from foveal.common.arguments import checked
from foveal.layers.checks import Device, check_dropout, head_size, join_heads
from foveal.layers.grid_rotary import Rotation
from foveal.layers.linear import project
from foveal.layers.weights import device_of, num_weights, state_dtype
from foveal.ops import attend
from foveal.patterns import Pattern


class RotatedAttention(nn.Module):
    """Multi-head self-attention of DALL-E: over any pattern, with the positions of the caller.

    Args:
        dim: features in and out.
        pattern: who reads whom.
        heads, dim_head: number of heads and their features.
        dropout: on the output.
        rotate_values: rotary positions turn the values too, as dalle-pytorch does; False turns
            queries and keys only, as RoFormer (Su et al., 2021).

    Raises:
        ValueError: sizes that make no sense, or a pattern whose own heads are not `heads`.
    """

    @checked
    def __init__(
        self,
        dim: int,
        pattern: Pattern,
        heads: int = 8,
        dim_head: int | None = 64,
        dropout: float = 0.0,
        rotate_values: bool = False,
    ) -> None:
        super().__init__()
        check_dropout(dropout)
        self.dim_head = head_size(dim, heads, dim_head)
        self.heads, self.pattern, self.rotate_values = heads, pattern, rotate_values
        if pattern.heads not in (None, heads):
            raise ValueError(
                f"the pattern has {pattern.heads} heads of its own, got {heads=}; they must "
                "be equal."
            )
        inner = heads * self.dim_head
        self.to_qkv = nn.Linear(dim, inner * 3, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, dim), nn.Dropout(dropout))

    def extra_repr(self) -> str:
        return f"pattern={self.pattern}, heads={self.heads}"

    def forward(
        self, x: Tensor, mask: Tensor | None = None, rotation: Rotation | None = None
    ) -> Tensor:
        """(batch, tokens, dim) -> same; a token costs what it reads, no sequence is padded.

        Args:
            mask: (batch, any) bool, True = real, for the first tokens; those beyond are real.
                Keys that are not real are read by nobody.
            rotation: of the positions from 0 on.
        """
        return self._attend(*self._project(x, rotation, 0), mask)

    # -- decoding ---------------------------------------------------------------------------

    def make_cache(
        self, batch: int, max_length: int | None = None, device: Device = None
    ) -> AttentionCache:
        """An empty decoding state for `batch` rows; on the layer's device if None is given."""
        return AttentionCache(
            self.pattern,
            batch,
            self.heads,
            self.dim_head,
            max_length,
            dtype=state_dtype(self.to_qkv),
            device=device or device_of(self.to_qkv),
        )

    def prefill(
        self,
        x: Tensor,
        cache: AttentionCache,
        rotation: Rotation | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, AttentionCache]:
        """The forward pass over the first tokens, remembered in an empty cache."""
        q, k, v = self._project(x, rotation, 0)
        return self._attend(q, k, v, mask), cache.prefill(k, v)

    def step(
        self,
        x: Tensor,
        cache: AttentionCache,
        rotation: Rotation | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, AttentionCache]:
        """One more token: x (batch, 1, dim) -> same."""
        q, k, v = self._project(x, rotation, cache.position)
        cache = cache.append(k, v)
        real = None if mask is None else fit_mask(mask, cache.position)
        return project(self.to_out, join_heads(cache.attend(q, key_mask=real))), cache

    def flops(self, length: int) -> int:
        """Floating-point operations of a forward pass over `length` tokens."""
        weights = num_weights(self.to_qkv) * 4 // 3  # to_out has a third of them
        pairs = self.pattern.num_pairs(length)
        if self.pattern.heads is None:
            pairs *= self.heads
        return 2 * length * weights + 4 * self.dim_head * pairs

    # -- parts ------------------------------------------------------------------------------

    def _project(
        self, x: Tensor, rotation: Rotation | None, offset: int | Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v (batch, heads, tokens, dim_head)."""
        qkv = project(self.to_qkv, x).unflatten(-1, (-1, self.dim_head))
        if rotation is None:
            q, k, v = qkv.transpose(1, 2).chunk(3, 1)
            return q, k, v
        here = rotation.at(offset, x.shape[1])
        if self.rotate_values:
            q, k, v = here.turn(qkv).transpose(1, 2).chunk(3, 1)
            return q, k, v
        turning = 2 * self.heads
        q, k = here.turn(qkv[:, :, :turning]).transpose(1, 2).chunk(2, 1)
        return q, k, qkv[:, :, turning:].transpose(1, 2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        real = None if mask is None else fit_mask(mask, k.shape[2])
        return project(self.to_out, join_heads(attend(q, k, v, self.pattern, key_mask=real)))


def fit_mask(mask: Tensor, length: int) -> Tensor:
    """A mask of the first tokens -> one of `length` tokens."""
    return F.pad(mask[:, :length], (0, max(0, length - mask.shape[1])), value=True)
