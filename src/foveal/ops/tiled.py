"""impl="tiled": exact attention over a tile plan in plain PyTorch.

Chunks of tiles that fit in cache pass through a few reused buffers. The backward pass recomputes
the weights of each chunk (Dao et al., "FlashAttention", 2022), so memory is that of the inputs
and outputs. All sums run in a fixed order: results are reproducible.

Legend of shapes: B batch, G key/value heads, R query heads per key/value head, N queries,
M keys, D head_dim, V head_dim of v; inside a chunk: b sequences, g heads, t tiles, and in a tile
q queries and k keys.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from foveal.common.hashing import mixed
from foveal.common.memo import remember
from foveal.common.processor import multiplies_bfloat16
from foveal.ops.bias import MASKED, WindowBias, window_columns
from foveal.ops.drop import kept
from foveal.ops.pair_bias import bias_of_pairs
from foveal.ops.places import (
    Scratch,
    batched_matmul,
    gather,
    matrices,
    narrow_places,
    outer_count,
    scatter,
    take_keys,
    tile_values,
)
from foveal.patterns import Halo, Pattern
from foveal.patterns.tabled import Tabled
from foveal.patterns.tiling import Grid, Places, TileGroup, Tiling

CHUNK = {"cpu": 1 << 22, "cuda": 1 << 28}
"""Bytes of scores in one chunk: what stays in cache on CPU; enough to fill the device on CUDA."""

WHOLE = 512 * 512
"""Up to so many pairs, one masked tile is cheaper than several groups of tiles."""

IN_PLACE_TILES = 4
"""With fewer tiles a head, one product over copies of all heads beats a product per head."""

BFLOAT16_ROW = 32
"""Rows of bfloat16 scores are padded to a multiple: over a rest, softmax takes twice as long."""


def _stays_bfloat16(x: Tensor) -> bool:
    """Whether tiles stay in bfloat16, scores as well, as in eager attention.

    A product of two bfloat16 matrices comes back as bfloat16 on a CPU.
    """
    return x.dtype == torch.bfloat16 and x.device.type == "cpu" and multiplies_bfloat16()


def plan(pattern: Pattern, n_keys: int) -> Tiling:
    """The pattern's tiles, or for a short sequence one tile that holds it whole."""
    # one tile would hold several documents
    return pattern.tiles(n_keys) if pattern.keeps_apart else _plan(pattern, n_keys)


@remember(entries=256)
def _plan(pattern: Pattern, n_keys: int) -> Tiling:
    tiling = pattern.tiles(n_keys)
    num_queries = pattern.num_queries(n_keys)
    whole = num_queries * n_keys
    if len(tiling.groups) < 2 or whole > WHOLE or 2 * tiling.visited < whole:
        return tiling
    mask = pattern.mask(num_queries, n_keys)
    queries, keys = (Grid(0, ((1, 0),), ((n, 1),)) for n in (num_queries, n_keys))
    group = TileGroup(queries, (keys,), None if bool(mask.all()) else mask[None])
    return Tiling(num_queries, n_keys, (group,))


def _narrow(group: TileGroup, first: int, size: int, count: int) -> TileGroup:
    """Tiles [first, first + size) of `count` along the first tile dimension of a group."""
    mask, inner = group.mask, group.num_tiles // count
    if mask is not None and len(mask) > 1:
        mask = mask[first * inner : (first + size) * inner]
    keys = tuple(narrow_places(part, first, size) for part in group.keys)
    return TileGroup(narrow_places(group.queries, first, size), keys, mask)


@dataclass(frozen=True)
class Chunk:
    """Some tiles of some heads of some sequences."""

    batch: slice
    heads: slice  # of key/value heads
    group: TileGroup
    queries: Places
    keys: tuple[Places, ...]
    mask: Tensor | None  # (1 or t, q, k) added to the logits


@dataclass
class Inputs:
    """One call: q (B, G, R, N, D), k (B, G, M, D), v (B, G, M, V), and what shapes the logits."""

    q: Tensor
    k: Tensor
    v: Tensor
    pattern: Pattern
    bias: Tensor | None  # (B or 1, H or 1, N or 1, M or 1), or a table (1, H or 1, 1, rows)
    window: WindowBias | None  # rows and columns (B, G, R, N, window)
    key_bias: Tensor | None  # (B, M), MASKED where there is no key
    scale: float
    dropout_p: float
    seeds: list[int]  # one, or one for each example
    softcap: float = 0.0  # 0: none
    places: tuple[Tensor, Tensor] | None = None  # of queries (N,) and keys (M,), to drop by

    # dtype: of the products and scores; sums: of what is added up over tiles, and of lse

    def __post_init__(self) -> None:
        half = self.q.dtype in (torch.float16, torch.bfloat16)
        self.sums = torch.float32 if half else self.q.dtype
        # a bias of some hundreds would leave bfloat16 no digit for the logits
        pooled = self.pattern.biased_by_table and not isinstance(self.pattern, Tabled)
        exact = self.bias is not None and not pooled
        self.dtype = torch.bfloat16 if _stays_bfloat16(self.q) and not exact else self.sums
        self.scratch = Scratch(self.dtype, self.q.device)
        drawn = self.seeds if self.dropout_p and self.places is None else []
        self.noise = [torch.Generator(self.q.device).manual_seed(seed) for seed in drawn]

    @property
    def tiling(self) -> Tiling:
        if self.window is not None:  # its columns differ from tile to tile
            return self.pattern.tiles(self.k.shape[2])
        return plan(self.pattern, self.k.shape[2])

    @property
    def head_dim(self) -> int:
        return self.q.shape[-1]

    @property
    def repeats(self) -> int:
        return self.q.shape[2]

    def chunks(self) -> Iterator[Chunk]:
        """All chunks of the call, always in the same order."""
        budget = CHUNK.get(self.q.device.type, 1 << 26) // self.dtype.itemsize
        batch, heads = self.k.shape[:2]
        for group in self.tiling.groups:
            mask = self._additive(group.mask)
            count = outer_count(group)
            row = group.num_tiles // count * self.repeats * group.tile_q * group.tile_k
            num_tiles = max(1, min(count, budget // row))
            num_heads = max(1, min(heads, budget // (row * num_tiles)))
            num_batch = max(1, min(batch, budget // (row * num_tiles * num_heads)))
            for b, h, t in itertools.product(
                range(0, batch, num_batch), range(0, heads, num_heads), range(0, count, num_tiles)
            ):
                size = min(num_tiles, count - t)
                cut = group if size == count else _narrow(group, t, size, count)
                yield Chunk(
                    slice(b, min(b + num_batch, batch)),
                    slice(h, min(h + num_heads, heads)),
                    group,
                    cut.queries,
                    cut.keys,
                    mask if cut.mask is None or len(cut.mask) == 1 else self._additive(cut.mask),
                )

    def _additive(self, mask: Tensor | None) -> Tensor | None:
        if mask is None:
            return None
        return (~mask).to(self.q.device, self.dtype) * MASKED

    def may_be_empty(self, chunk: Chunk) -> bool:
        """Whether a query of the chunk may have no key."""
        given = self.bias is not None or self.key_bias is not None
        return given or not chunk.group.every_query_reads

    # -- parts of a chunk -------------------------------------------------------------------

    def queries(self, name: str, chunk: Chunk, *parts: Tensor) -> Tensor:
        """Parts (B, G, R, N, E), side by side -> copy (b, g, t, R q, sum of E)."""
        b, g = self.k[chunk.batch, chunk.heads].shape[:2]
        places = chunk.queries
        width = sum(part.shape[-1] for part in parts)
        out = self.scratch.get(name, b, g, places.num_tiles, self.repeats, places.num_items, width)
        first = 0
        for part in parts:
            x = part[chunk.batch, chunk.heads]
            last = first + part.shape[-1]
            for r in range(self.repeats):
                gather(x[:, :, r], places, out[:, :, :, r, :, first:last])
            first = last
        return out.flatten(3, 4)

    def per_query(self, x: Tensor, chunk: Chunk) -> Tensor:
        """Numbers (B, G, R, N) -> (b, g, t, R q, 1)."""
        x = x[chunk.batch, chunk.heads, ..., None]
        places = chunk.queries
        out = x.new_empty(*x.shape[:2], places.num_tiles, self.repeats, places.num_items, 1)
        for r in range(self.repeats):
            gather(x[:, :, r], places, out[:, :, :, r])
        return out.flatten(3, 4)

    def scaled_queries(self, chunk: Chunk) -> Tensor:
        """(b, g, t, R q, D) times the scale, followed by the columns of the window bias."""
        q = self.queries("q", chunk, self.q, *(self.window or ()))
        q[..., : self.head_dim] *= self.scale
        return q

    def biased_keys(self, chunk: Chunk) -> Tensor:
        """(b, g, t, k, D), followed by the one-hot columns that pick the window bias."""
        if self.window is None:
            return self.keys("k", self.k, chunk)
        assert isinstance(self.pattern, Halo)
        hot = window_columns(self.pattern, chunk.group).to(self.q.device, self.dtype)
        x = self.k[chunk.batch, chunk.heads]
        k = self.scratch.get(
            "k", *x.shape[:2], chunk.queries.num_tiles, len(hot), self.head_dim + hot.shape[1]
        )
        take_keys(x, chunk.keys, k[..., : self.head_dim])
        k[..., self.head_dim :] = hot
        return k

    def write_queries(self, x: Tensor, chunk: Chunk, values: Tensor) -> None:
        """values (b, g, t, R q, E) -> their places in x (B, G, R, N, E)."""
        x = x[chunk.batch, chunk.heads]
        parts = values.unflatten(3, (self.repeats, chunk.queries.num_items))
        for r in range(self.repeats):
            scatter(x[:, :, r], chunk.queries, parts[:, :, :, r])

    def keys(self, name: str, x: Tensor, chunk: Chunk) -> Tensor:
        """x (B, G, M, E) -> (b, g, t, k, E): in place where the tiles are plain matrices."""
        x = x[chunk.batch, chunk.heads]
        tiles, items = chunk.queries.num_tiles, chunk.group.tile_k
        if len(chunk.keys) == 1 and x.dtype == self.dtype and tiles >= IN_PLACE_TILES:
            in_place = matrices(x, chunk.keys[0])
            if in_place is not None:
                return in_place
        out = self.scratch.get(name, *x.shape[:2], tiles, items, x.shape[-1])
        take_keys(x, chunk.keys, out)
        return out

    def logits(self, chunk: Chunk, q: Tensor, k: Tensor, bend: Tensor | None = None) -> Tensor:
        """q (b, g, t, R q, D) scaled, k (b, g, t, k, D) -> logits (b, g, t, R q, k).

        Rows may be padded by masked keys. What the soft-cap's derivatives are goes into `bend`.
        """
        size = chunk.group.tile_k
        padded = self.scratch.get("scores", *q.shape[:4], self._row(size))
        padded[..., size:] = MASKED
        scores = padded[..., :size]
        if self.softcap:
            self._capped_scores(q, k, scores, bend)
        else:
            batched_matmul(q, k.mT, scores)
        shaped = scores.unflatten(3, (self.repeats, chunk.queries.num_items))
        if self.bias is not None:
            shaped += bias_of_pairs(self, chunk, self.bias)
        if chunk.mask is not None:
            shaped += chunk.mask[:, None]
        if self.key_bias is not None:
            shaped += tile_values(self.key_bias[chunk.batch], chunk.keys)[:, None, :, None, None]
        return padded

    def _capped_scores(self, q: Tensor, k: Tensor, scores: Tensor, bend: Tensor | None) -> None:
        """The soft-cap is for the product of features alone: a window bias is added to it."""
        dim = self.head_dim
        batched_matmul(q[..., :dim], k[..., :dim].mT, scores)
        scores.div_(self.softcap).tanh_()
        if bend is not None:
            torch.mul(scores, scores, out=bend).neg_().add_(1.0)
        scores *= self.softcap
        if self.window is not None:
            added = self.scratch.get("window", *scores.shape)
            batched_matmul(q[..., dim:], k[..., dim:].mT, added)
            scores += added

    def hidden(self, chunk: Chunk) -> Tensor:
        """Queries whose every key is masked: (b or 1, 1, t or 1, 1, q or 1) bool."""
        visible = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=self.q.device)
        if chunk.mask is not None:
            visible = visible & (chunk.mask == 0)
        if self.key_bias is not None:
            keys = tile_values(self.key_bias[chunk.batch], chunk.keys)[:, :, None]
            visible = visible & (keys > MASKED / 2)
        return ~visible.any(-1)[:, None, :, None]

    def _row(self, size: int) -> int:
        if self.dtype != torch.bfloat16 or size <= BFLOAT16_ROW:
            return size
        return -(-size // BFLOAT16_ROW) * BFLOAT16_ROW

    def drop(self, chunk: Chunk, weights: Tensor) -> Tensor | None:
        """Dropout factors, 0 or 1 / (1 - p), of a chunk's weights."""
        if not self.dropout_p:
            return None
        keep = self.scratch.get("drop", *weights.shape)
        if self.places is None:
            one = len(self.noise) == 1
            parts, noises = ([keep], self.noise) if one else (keep, self.noise[chunk.batch])
            for part, noise in zip(parts, noises, strict=True):
                part.bernoulli_(1 - self.dropout_p, generator=noise)
        else:
            keep[..., : chunk.group.tile_k] = kept(self.dropout_p, self._draws(chunk, self.places))
        return keep.div_(1 - self.dropout_p)

    def _draws(self, chunk: Chunk, places: tuple[Tensor, Tensor]) -> Tensor:
        """A number for each weight (b, g, t, R q, k) int64, by head and places alone."""
        device = self.q.device
        heads, repeats = (torch.arange(n, device=device) for n in self.q.shape[1:3])
        heads = heads[chunk.heads][:, None] * self.repeats + repeats
        index = torch.cat([part.index() for part in chunk.keys], 1).to(device)
        queries = places[0][chunk.queries.index().to(device)]
        keys = places[1][index.clamp(max=len(places[1]) - 1)]
        row = mixed(
            torch.tensor(self.seeds[chunk.batch], device=device)[:, None, None, None, None],
            heads[:, None, :, None],
            queries[:, None],
        )
        return mixed(row[..., None], keys[:, None, None]).flatten(3, 4)


def forward(inputs: Inputs, out: Tensor, need_lse: bool = True) -> Tensor:
    """Fills out (B, G, R, N, V) and returns lse (B, G, R, N).

    Without `need_lse` it may be 0 for a query with keys, which saves two passes over the scores.
    """
    q, v = inputs.q, inputs.v
    covered = inputs.tiling.covers_all
    if not covered:
        out.zero_()
    unset = -torch.inf if need_lse or not covered else 0.0
    lse = torch.full(q.shape[:-1], unset, dtype=inputs.sums, device=q.device)
    for chunk in inputs.chunks():
        q_tile = inputs.scaled_queries(chunk)
        scores = inputs.logits(chunk, q_tile, inputs.biased_keys(chunk))
        weights, chunk_lse = softmax_of(inputs, chunk, scores, need_lse)
        keep = inputs.drop(chunk, weights)
        if keep is not None:
            weights *= keep
        result = inputs.scratch.get("out", *q_tile.shape[:4], v.shape[-1])
        weights = weights[..., : chunk.group.tile_k]
        batched_matmul(weights, inputs.keys("v", inputs.v, chunk), result)
        inputs.write_queries(out, chunk, result)
        if chunk_lse is not None:
            inputs.write_queries(lse[..., None], chunk, chunk_lse[..., None])
    return lse


def softmax_of(
    inputs: Inputs, chunk: Chunk, scores: Tensor, need_lse: bool
) -> tuple[Tensor, Tensor | None]:
    """scores (b, g, t, R q, k) -> weights in their place, and the log-sum-exp (b, g, t, R q).

    Two maxima give the log-sum-exp: the largest weight is exp(largest logit - lse). It is None
    where it is not needed and every query has a key.
    """
    may_be_empty = inputs.may_be_empty(chunk)
    if not (need_lse or may_be_empty):
        return torch.softmax(scores, -1, out=scores), None
    top = scores.amax(-1)
    weights = torch.softmax(scores, -1, out=scores)
    lse = top.to(inputs.sums)
    if need_lse:
        lse = lse - weights.amax(-1).to(inputs.sums).log_()
    if may_be_empty:
        empty = top <= MASKED / 2
        if bool(top.isnan().any()):  # of a query that is NaN; it may still be one without keys
            rows = (*empty.shape[:3], inputs.repeats, empty.shape[3] // inputs.repeats)
            empty = empty | inputs.hidden(chunk).expand(rows).flatten(3)
            weights.masked_fill_(empty[..., None], 0.0)
        lse = lse.masked_fill(empty, -torch.inf)
        weights *= ~empty[..., None]
    return weights, lse
