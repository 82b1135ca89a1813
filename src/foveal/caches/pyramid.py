"""What decoding over a Pyramid remembers: two blocks a level, however long the sequence."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.caches.pyramid_extend import extend
from foveal.caches.state import lasting
from foveal.caches.summary import summary
from foveal.common.memo import remember
from foveal.ops.bias import PyramidBias
from foveal.ops.logits import capped, shaped_attention
from foveal.ops.pooling import pairs, pool_keys
from foveal.patterns import Pyramid
from foveal.patterns.pyramid_tiles import _PyramidTiles


class PyramidCache:
    """Decoding state of one attention layer over a causal Pyramid.

    Each level is a ring of 2 * block_size clusters: a query reads its own block and the one before
    it, never farther back. A cluster enters its ring when its last token arrives, as the mean of
    the two halves that lie in the ring below, so a token costs O(1) updates on average and
    O(block * levels) reads. Methods update in place and return the cache.

    Args:
        pattern: a causal Pyramid.
        batch, kv_heads, head_dim: sizes of the keys and values.
        max_length: most tokens that will ever come; None: levels are added as they are needed.
        heads: of the queries, which coarse ones must remember; kv_heads when None.
        dtype, device: of what is stored.

    Attributes:
        position: number of tokens seen so far.
        data: (2, batch, kv_heads, levels, 2 * block_size, head_dim), keys first.
        queries: (batch, heads, levels, head_dim), of coarse queries the newest at each level.

    Raises:
        ValueError: the pattern is not a causal Pyramid, or a size is not positive.
    """

    @lasting
    def __init__(
        self,
        pattern: Pyramid,
        batch: int,
        kv_heads: int,
        head_dim: int,
        max_length: int | None = None,
        *,
        heads: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        if not isinstance(pattern, Pyramid) or not pattern.causal:
            raise ValueError(
                f"pattern must be a causal Pyramid, got {pattern}; decoding a token at a time is "
                "only defined when no query reads a later key (causal=True)."
            )
        heads = kv_heads if heads is None else heads
        sizes = {"batch": batch, "kv_heads": kv_heads, "head_dim": head_dim, "heads": heads}
        for name, value in {**sizes, "max_length": max_length or 1}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {name}={value}.")
        self.pattern, self.max_length, self.position = pattern, max_length, 0
        levels = pattern.num_levels(max_length or 1)
        ring = 2 * pattern.block_size
        # zeros, because a weight of zero times what happens to lie in memory may be NaN
        self.data = torch.zeros(
            (2, batch, kv_heads, levels, ring, head_dim), dtype=dtype, device=device
        )
        kept = levels if pattern.queries == "coarse" else 0
        self.queries = self.data.new_zeros((batch, heads, kept, head_dim))

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return summary(self, "cache")

    @property
    def num_bytes(self) -> int:
        """Bytes of memory held."""
        return sum(t.numel() * t.element_size() for t in (self.data, self.queries))

    @property
    def levels(self) -> int:
        return self.data.shape[3]

    @property
    def ring(self) -> int:
        """Clusters that a level holds."""
        return self.data.shape[4]

    @lasting
    def clone(self) -> PyramidCache:
        """A copy that shares no buffer with this cache."""
        twin = copy.copy(self)
        twin.data, twin.queries = self.data.clone(), self.queries.clone()
        return twin

    @lasting
    def select(self, rows: Tensor) -> PyramidCache:
        """Chosen rows (chosen,) of the batch: see DecodingState."""
        twin = copy.copy(self)
        twin.data = self.data.index_select(1, rows)
        twin.queries = self.queries.index_select(0, rows)
        return twin

    # -- loading ----------------------------------------------------------------------------

    def prefill(self, k: Tensor, v: Tensor, q: Tensor | None = None) -> PyramidCache:
        """Load many tokens at once.

        Args:
            k, v: (batch, kv_heads, tokens, head_dim), positions already applied.
            q: (batch, heads, tokens, head_dim), needed where queries are coarse.

        Raises:
            ValueError: sizes that do not fit, more tokens than max_length, or no q.
        """
        kv = torch.stack((k, v))
        self._check(kv)
        if self.pattern.queries == "coarse" and q is None:
            raise ValueError("prefill needs q where the pattern's queries are coarse, got None.")
        if self.position == 0:
            self._fill(kv)
            if q is not None:
                self._fill_queries(q)
            return self
        for token in range(kv.shape[3]):
            self._push(kv[:, :, :, token])
            if q is not None:
                self._remember(q[:, :, token : token + 1])
        return self

    def append(self, k: Tensor, v: Tensor) -> PyramidCache:
        """Load the next token: k, v (batch, kv_heads, 1, head_dim)."""
        if k.shape[2] != 1:
            raise ValueError(f"append takes one token, got {k.shape[2]}; use prefill for many.")
        kv = torch.stack((k, v))
        self._check(kv)
        self._push(kv[:, :, :, 0])
        return self

    def _fill(self, kv: Tensor) -> None:
        length, kept = kv.shape[3], self.kept_clusters(kv.shape[3])
        pooled = pool_keys(kv[0], kv[1], None, len(kept))
        levels = [
            torch.stack([pooled.level(x, number)[:, :, a:b] for x in (pooled.k, pooled.v)])
            for number, (a, b) in enumerate(kept)
        ]
        self._put(levels, length)

    def kept_clusters(self, length: int) -> list[tuple[int, int]]:
        """Clusters [first, last) of each level that are held after `length` tokens."""
        levels = max(self.levels, self.pattern.num_levels(length))
        whole = [length >> level for level in range(levels)]  # clusters that are complete
        return [(max(0, count - self.ring), count) for count in whole]

    def load(self, levels: Sequence[Tensor], queries: Tensor, length: int) -> None:
        """Fill the empty cache with what it keeps of `length` tokens.

        Args:
            levels: `kept_clusters` of each level, (2, batch, kv_heads, clusters, head_dim).
            queries: the newest of each level, (batch, heads, levels, head_dim); none unless they
                are coarse.
        """
        self._put(levels, length)
        if self.queries.shape[2]:
            self.queries.copy_(queries)

    def _put(self, levels: Sequence[Tensor], length: int) -> None:
        while self.levels < len(levels):
            self.add_level()
        kept = self.kept_clusters(length)
        for number, (clusters, (first, last)) in enumerate(zip(levels, kept, strict=True)):
            places = torch.arange(first, last, device=self.data.device) % self.ring
            self.data[:, :, :, number].index_copy_(3, places, clusters.to(self.data.dtype))
        self.position = length

    def _push(self, token: Tensor) -> None:
        """One token (2, batch, kv_heads, head_dim) into level 0, and the clusters it completes."""
        ring = self.data.shape[4]
        if self.position >= ring << (self.levels - 1):
            self.add_level()
        self.data[:, :, :, 0, self.position % ring] = token.to(self.data.dtype)
        self.position += 1
        for level in range(1, self.levels):
            cluster, rest = divmod(self.position, 1 << level)
            if rest:
                break
            halves = 2 * (cluster - 1) % ring
            below = self.data[:, :, :, level - 1, halves : halves + 2]
            self.data[:, :, :, level, (cluster - 1) % ring] = below.mean(3)

    def add_level(self) -> None:
        """One more level; the ring below still holds all of its clusters."""
        above = torch.zeros_like(self.data[:, :, :, :1])
        above[:, :, :, 0, : self.pattern.block_size] = pairs(self.data[:, :, :, -1], 3).mean(4)
        self.data = torch.cat((self.data, above), 3)
        if self.queries.shape[2]:
            self.queries = F.pad(self.queries, (0, 0, 0, 1))

    def _fill_queries(self, q: Tensor) -> None:
        """The query of the first token of the cluster that is newest at each level."""
        for level in range(self.queries.shape[2]):
            first = (self.position - 1) >> level << level
            self.queries[:, :, level] = q[:, :, first].to(self.queries.dtype)

    def _remember(self, q: Tensor) -> None:
        """The newest query stands for every cluster that it is the first token of."""
        newest = self.position - 1
        starts = self.levels if newest == 0 else (newest & -newest).bit_length()
        self.queries[:, :, :starts] = q.to(self.queries.dtype)

    def _check(self, kv: Tensor) -> None:
        expected, got = self.data.shape, kv.shape
        if (*got[:3], got[4]) != (*expected[:3], expected[5]):
            raise ValueError(
                "k and v must be (batch, kv_heads, tokens, head_dim) = "
                f"({expected[1]}, {expected[2]}, any, {expected[5]}), got {tuple(got[1:])}."
            )
        end = self.position + got[3]
        if self.max_length is not None and end > self.max_length:
            raise ValueError(
                f"the cache holds at most max_length={self.max_length} tokens, got {end}; "
                "create it with a larger max_length."
            )

    # -- reading ----------------------------------------------------------------------------

    def extend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float | None = None,
        bias: PyramidBias | None = None,
        sinks: Tensor | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        """Load many more tokens, and attention of each of them over what it reads.

        Args:
            q: (batch, heads, tokens, head_dim); heads a multiple of kv_heads.
            k, v: (batch, kv_heads, tokens, head_dim), positions already applied.
            scale, bias, sinks, softcap: as in `attend`.

        Returns:
            (batch, heads, tokens, head_dim).

        Raises:
            ValueError: sizes that do not fit, or more tokens than max_length.
        """
        self._check(torch.stack((k, v)))
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        return extend(self, q, k, v, scale, bias, sinks, softcap)

    def attend(
        self,
        q: Tensor,
        scale: float | None = None,
        bias: PyramidBias | None = None,
        sinks: Tensor | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        """Attention of the newest token over the clusters that the pattern lets it read.

        Args:
            q: (batch, heads, 1, head_dim); heads a multiple of kv_heads.
            scale: of the scores; head_dim ** -0.5 by default.
            bias: hierarchical relative positions.
            sinks, softcap: as in `attend` of foveal; sinks (heads,).

        Returns:
            (batch, heads, 1, head_dim_v).

        Raises:
            ValueError: nothing is loaded yet, or the heads do not fit.
        """
        if self.position == 0:
            raise ValueError("attend needs at least one token in the cache, got position=0.")
        kv_heads = self.data.shape[2]
        if q.shape[1] % kv_heads:
            raise ValueError(f"heads of q must be a multiple of {kv_heads=}, got {q.shape[1]}.")
        weights, places = _newest(self.pattern, self.levels, self.position - 1)
        levels = len(weights) // self.data.shape[4]
        added = weights.to(q.device, torch.promote_types(q.dtype, torch.float32))[None, None, None]
        if bias is not None:  # (1, kv_heads or 1, heads a group or 1, clusters)
            table = bias.table[places.to(q.device)].T
            added = added + table.unflatten(0, (kv_heads if len(table) > 1 else 1, -1))
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        rows = None if sinks is None else sinks.view(kv_heads, -1, 1)
        if self.pattern.queries == "coarse":
            return self._attend_coarse(q, scale, added, levels, rows, softcap)
        k, v = self.data[:, :, :, :levels].flatten(3, 4)
        grouped = q.unflatten(1, (kv_heads, -1))[:, :, :, 0].to(k.dtype)
        if rows is softcap is None:
            out = F.scaled_dot_product_attention(grouped, k, v, added.to(k.dtype), scale=scale)
        else:
            out = shaped_attention(grouped, k, v, added, scale, softcap=softcap, sinks=rows)
        return out.flatten(1, 2)[:, :, None].to(q.dtype)

    def _attend_coarse(
        self,
        q: Tensor,
        scale: float,
        added: Tensor,
        levels: int,
        sinks: Tensor | None,
        softcap: float | None,
    ) -> Tensor:
        """A query of its own for each level; added (1, 1 or kv_heads, 1 or group, clusters), and
        sinks (kv_heads, group, 1)."""
        self._remember(q)
        k, v = self.data[:, :, :, :levels]
        queries = self.queries[:, :, :levels].unflatten(1, (k.shape[1], -1)).transpose(2, 3)
        scores = (queries @ k.mT).transpose(2, 3).flatten(3, 4)
        logits = capped(scores * scale, softcap) + added
        if sinks is not None:
            logits = torch.cat((logits, sinks.to(logits.dtype).expand(len(q), -1, -1, -1)), -1)
        weights = logits.softmax(-1)[..., : scores.shape[-1]].to(v.dtype)
        return (weights @ v.flatten(2, 3)).flatten(1, 2)[:, :, None].to(q.dtype)


@remember(entries=64)
def _newest(pattern: Pyramid, levels: int, position: int) -> tuple[Tensor, Tensor]:
    """For the newest query: what each place of the rings gains, and its row in a bias table.

    Both (levels * 2 * block_size,), without the levels above the last that is read; a place gains
    the log of its cluster's tokens, -inf where it is not read. Cached because the layers of a
    model ask the same question one after the other.
    """
    ring = 2 * pattern.block_size
    level = torch.arange(levels, device="cpu")[:, None]
    own = position >> level
    # the latest cluster that falls on each place
    cluster = own - (own - torch.arange(ring, device="cpu")) % ring
    tiles = _PyramidTiles(pattern, position + 1, position + 1)
    reads = (cluster >= 0) & tiles.meets(level, own, cluster)
    gain = torch.where(reads, level.double() * math.log(2), -torch.inf)
    place = (cluster - own + ring - 1).clamp(0, pattern.bias_size - 1)
    used = int(reads.any(1).nonzero()[-1]) + 1
    return gain[:used].flatten(), place[:used].flatten()
