"""Self-attention in which a pattern says who reads whom."""

from __future__ import annotations

from torch import Tensor, nn

from foveal.caches import AttentionCache, PyramidCache
from foveal.common.arguments import checked
from foveal.layers.checks import (
    Device,
    check_dropout,
    check_sizes,
    head_size,
    join_heads,
)
from foveal.layers.linear import project
from foveal.layers.rotary import Rotary
from foveal.layers.weights import device_of, num_weights, state_dtype
from foveal.ops import attend
from foveal.patterns import Pattern, Pyramid
from foveal.patterns.subclasses import is_a

AttentionState = AttentionCache | PyramidCache


class SelfAttention(nn.Module):
    """Multi-head self-attention over a pattern, with cached decoding where it is causal.

    Args:
        dim: features in and out.
        pattern: who reads whom.
        heads: number of heads.
        dim_head: features of a head; None = dim / heads.
        kv_heads: number of key and value heads, each shared by heads / kv_heads queries
            (grouped-query attention); None = heads.
        rotary: rotary positions on queries and keys; a Rotary to share its table.
        dropout: on the attention weights.

    Raises:
        ValueError: sizes that do not divide, or a pattern whose own heads are not `heads`.
    """

    @checked
    def __init__(
        self,
        dim: int,
        pattern: Pattern,
        heads: int = 8,
        dim_head: int | None = 64,
        kv_heads: int | None = None,
        rotary: bool | Rotary = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dim_head = head_size(dim, heads, dim_head)
        self.heads = heads
        self.kv_heads = heads if kv_heads is None else kv_heads
        check_sizes(kv_heads=self.kv_heads)
        check_dropout(dropout)
        if heads % self.kv_heads:
            raise ValueError(f"kv_heads must divide heads, got {heads=}, kv_heads={kv_heads}.")
        if pattern.heads not in (None, heads):
            raise ValueError(
                f"the pattern has {pattern.heads} heads of its own, got {heads=}; they must be "
                "equal."
            )
        self.pattern = pattern
        self.rotary = Rotary(self.dim_head) if rotary is True else rotary or None
        self.dropout = dropout
        self.to_qkv = nn.Linear(dim, (heads + 2 * self.kv_heads) * self.dim_head, bias=False)
        self.to_out = nn.Linear(heads * self.dim_head, dim)

    def extra_repr(self) -> str:
        return f"pattern={self.pattern}, heads={self.heads}, kv_heads={self.kv_heads}"

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(batch, tokens, dim) -> same.

        Args:
            mask: (batch, tokens) bool, True = real; keys that are not real are read by nobody.
        """
        q, k, v = self._project(x, 0)
        return self._attend(q, k, v, mask)

    def make_cache(
        self, batch: int, max_length: int | None = None, device: Device = None
    ) -> AttentionState:
        """An empty decoding state for `batch` rows; on the layer's device if None is given."""
        if is_a(self.pattern, Pyramid):
            return PyramidCache(
                self.pattern,
                batch,
                self.kv_heads,
                self.dim_head,
                max_length,
                heads=self.heads,
                dtype=state_dtype(self.to_qkv),
                device=device or device_of(self.to_qkv),
            )
        return AttentionCache(
            self.pattern,
            batch,
            self.kv_heads,
            self.dim_head,
            max_length,
            dtype=state_dtype(self.to_qkv),
            device=device or device_of(self.to_qkv),
        )

    def prefill(self, x: Tensor, cache: AttentionState) -> tuple[Tensor, AttentionState]:
        """The forward pass over the first tokens, remembered in an empty cache.

        Raises:
            ValueError: the cache has seen tokens already.
        """
        if cache.position:
            raise ValueError(f"prefill needs an empty cache, got position={cache.position}.")
        q, k, v = self._project(x, 0)
        out = self._attend(q, k, v, None)
        if isinstance(cache, PyramidCache):
            return out, cache.prefill(k, v, q)
        return out, cache.prefill(k, v)

    def step(self, x: Tensor, cache: AttentionState) -> tuple[Tensor, AttentionState]:
        """One more token: x (batch, 1, dim) -> same."""
        q, k, v = self._project(x, cache.position)
        cache = cache.append(k, v)
        return project(self.to_out, join_heads(self._attend_newest(q, cache))), cache

    def flops(self, length: int) -> int:
        """Floating-point operations of a forward pass over `length` tokens."""
        weights = num_weights(self.to_qkv) + num_weights(self.to_out)
        pairs = self.pattern.num_pairs(length)
        if self.pattern.heads is None:
            pairs *= self.heads
        return 2 * length * weights + 4 * self.dim_head * pairs

    def _project(self, x: Tensor, offset: int | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q (batch, heads, tokens, dim_head); k, v (batch, kv_heads, tokens, dim_head)."""
        qkv = project(self.to_qkv, x).unflatten(-1, (-1, self.dim_head))
        # split, whose derivative joins the parts, and not slices, whose derivatives are added
        qk, v = qkv.split((self.heads + self.kv_heads, self.kv_heads), 2)
        if self.rotary is not None:
            qk = self.rotary(qk, offset)
        q, k = qk.transpose(1, 2).split((self.heads, self.kv_heads), 1)
        return q, k, v.transpose(1, 2)

    def _attend_newest(self, q: Tensor, cache: AttentionState) -> Tensor:
        return cache.attend(q)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        out = attend(q, k, v, self.pattern, key_mask=mask, dropout_p=dropout)
        return project(self.to_out, join_heads(out))
