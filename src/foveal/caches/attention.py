"""The keys and values of one attention layer that later tokens can still read."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.caches.extend import Relate, attend_held
from foveal.caches.stores import Log, Ring
from foveal.caches.summary import summary
from foveal.common.memo import remember
from foveal.ops import TableBias
from foveal.ops.logits import shaped_attention
from foveal.ops.rows_without_keys import open_dead_rows
from foveal.ops.table import Alibi
from foveal.patterns import Full, Pattern, SlidingWindow


class AttentionCache:
    """Decoding state of one attention layer.

    A ring of `window` places (behind a static prefix) where the pattern has a horizon, otherwise
    a log that forgets what `pattern.keeps` no longer lists. Methods update the buffers in place
    and return the cache: use the returned one, and `clone()` to try two continuations.

    Args:
        pattern: a causal pattern, or one that is causal from a position on (a Prefix in a union):
            all before it must then come in `prefill`.
        batch, kv_heads, head_dim: sizes of the keys and values.
        max_length: most tokens that will ever come; lets buffers be allocated once. None: they
            grow as needed.
        dtype, device: of the stored keys and values.

    Attributes:
        position: number of tokens seen so far, which is the position of the next one; the rows
            of a batch share it.

    Raises:
        ValueError: the pattern is not causal, or a size is not positive.
    """

    def __init__(
        self,
        pattern: Pattern,
        batch: int,
        kv_heads: int,
        head_dim: int,
        max_length: int | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        self._check(pattern, batch, kv_heads, head_dim, max_length)
        self.pattern = pattern
        self.max_length = max_length
        self.position = 0
        shape = (2, batch, kv_heads, 0, head_dim)
        empty = torch.empty(shape, dtype=dtype, device=device)
        heads = _head_patterns(pattern)
        bounds = _horizon(heads)
        self._store: Ring | Log
        # of these, and not of classes made from them, it is known that a token reads all that is
        # held: then nobody need ask which keys those are
        self._reads_held = type(pattern) in (Full, SlidingWindow)
        if bounds is None:
            self._store = Log(empty, functools.partial(_keeps, heads), max_length)
        else:
            self._store = Ring(empty, *bounds, max_length, self._bench(bounds[0]))

    def _bench(self, prefix: int) -> int:
        """Tokens that are read beside the prefix by the last one, which tells for all."""
        if not prefix or self.max_length is None or self.max_length <= prefix:
            return 0
        return max(0, len(_reads(self.pattern, self.max_length - 1)[0]) - prefix)

    @staticmethod
    def _check(
        pattern: Pattern, batch: int, kv_heads: int, head_dim: int, max_length: int | None
    ) -> None:
        if pattern.decodes_from is None:
            raise ValueError(
                f"pattern must be causal to be decoded a token at a time, got {pattern}; "
                "use its causal form."
            )
        if pattern.pools:
            raise ValueError(
                f"an AttentionCache holds keys one by one, but {pattern} pools them; for a "
                "Pyramid use PyramidCache."
            )
        sizes = {"batch": batch, "kv_heads": kv_heads, "head_dim": head_dim}
        if max_length is not None:
            sizes["max_length"] = max_length
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {name}={value}.")

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return summary(self, "cache")

    @property
    def num_bytes(self) -> int:
        """Bytes of memory held for keys and values."""
        return self._store.num_bytes

    def clone(self) -> AttentionCache:
        """A copy that shares no buffer with this cache."""
        twin = copy.copy(self)
        twin._store = self._store.clone()
        return twin

    def select(self, rows: Tensor) -> AttentionCache:
        """Chosen rows (chosen,) of the batch: see DecodingState."""
        twin = copy.copy(self)
        twin._store = self._store.select(rows)
        return twin

    def prefill(self, k: Tensor, v: Tensor) -> AttentionCache:
        """Load many tokens at once, keeping only what later ones can read.

        Args:
            k, v: (batch, kv_heads, tokens, head_dim), positions already applied.
        """
        self._check_tokens(k, v)
        self._store.write(torch.stack((k, v)), self.position)
        self.position += k.shape[2]
        return self

    def stays(self, span: tuple[int, int], length: int) -> Tensor:
        """Those of the positions [first, last) that `prefill` of `length` tokens keeps."""
        return self._store.stays(*span, length)

    def load(self, kv: Tensor, length: int) -> None:
        """Fill the empty cache with what stays of `length` tokens.

        Args:
            kv: (2, batch, kv_heads, keys, head_dim), ascending.
        """
        self._store.put(kv, self.stays((0, length), length), length)
        self.position = length

    def append(self, k: Tensor, v: Tensor) -> AttentionCache:
        """Load the next token: k, v (batch, kv_heads, 1, head_dim)."""
        if k.shape[2] != 1:
            raise ValueError(f"append takes one token, got {k.shape[2]}; use prefill for many.")
        self._check_tokens(k, v)
        self._store.push(k, v, self.position)
        self.position += 1
        return self

    def extend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float | None = None,
        key_mask: Tensor | None = None,
        bias: TableBias | Alibi | None = None,
        relate: Relate | None = None,
        sinks: Tensor | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        """Load many more tokens, and attention of each of them over what it reads.

        Args:
            q: (batch, heads, tokens, head_dim); heads a multiple of kv_heads.
            k, v: (batch, kv_heads, tokens, head_dim), positions already applied.
            scale: of the scores; head_dim ** -0.5 by default.
            key_mask: (batch, position + tokens) bool of all tokens, the new ones included.
            bias: relative positions by a table, or ALiBi.
            relate: relative positions by further features of queries and keys.
            sinks, softcap: as in `attend` of foveal; sinks (heads,).

        Returns:
            (batch, heads, tokens, head_dim); zeros for a token that reads nothing.

        Raises:
            ValueError: sizes that do not fit, or more tokens than max_length.
        """
        self._check_tokens(k, v)
        if self.position:
            _check_prefix(self.pattern, self.position)
        first, new = self.position, torch.stack((k, v)).to(self.dtype)
        self.position = end = first + k.shape[2]
        if isinstance(self._store, Log) and _is_all(self.pattern, end):
            self._store.write(new, first)  # nothing is forgotten: attention reads it in place
            held, kv = torch.arange(first, device="cpu"), self._store.held_data()
        else:
            self.position = first
            held, old = self.kept()
            self.position, kv = end, torch.cat((old, new), 3)
            self._store.write(new, first)
        options = (scale, key_mask, bias, relate, sinks, softcap)
        return attend_held(q, kv, self.pattern, first, held, *options)

    @property
    def dtype(self) -> torch.dtype:
        """Of the stored keys and values."""
        return self._store.data.dtype

    @property
    def sizes(self) -> tuple[int, int, int]:
        """(batch, kv_heads, head_dim) of the stored keys and values."""
        _, batch, kv_heads, _, head_dim = self._store.data.shape
        return batch, kv_heads, head_dim

    @property
    def reads_held(self) -> bool:
        """Whether the newest token reads all that is held."""
        return self._reads_held

    def claim(self) -> tuple[Tensor, int, int]:
        """Make room for the next token, whose key and value the caller then writes.

        Returns:
            all places (2, batch, kv_heads, places, head_dim), that of the token, and how many of
            the first are in use.
        """
        if self.max_length is not None and self.position >= self.max_length:
            self._check_tokens(*self._store.data[:, :, :, :1])
        place = self._store.claim(self.position)
        self.position += 1
        return self._store.data, place, self._store.in_use

    def kept(self) -> tuple[Tensor, Tensor]:
        """What later tokens can read.

        Returns:
            positions (keys,), and keys and values (2, batch, kv_heads, keys, head_dim).
        """
        if self.position == 0:
            empty = self._store.data[:, :, :, :0]
            return torch.empty(0, dtype=torch.long, device="cpu"), empty
        positions = _positions(_keeps(_head_patterns(self.pattern), self.position - 1))
        return positions, self._store.read(positions, ordered=True)

    def attend(
        self,
        q: Tensor,
        scale: float | None = None,
        key_mask: Tensor | None = None,
        bias: Callable[[Tensor], Tensor] | None = None,
        sinks: Tensor | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        """Attention of the newest token over exactly the keys that the pattern lets it read.

        Args:
            q: (batch, heads, 1, head_dim); heads a multiple of kv_heads.
            scale: of the scores; head_dim ** -0.5 by default.
            key_mask: (batch, position) bool of all tokens seen so far, True = real.
            bias: positions of keys (keys,) -> what to add to their logits (batch, heads, keys).
            sinks, softcap: as in `attend` of foveal; sinks (heads,).

        Returns:
            (batch, heads, 1, head_dim); zeros for a token that reads nothing.

        Raises:
            ValueError: nothing is loaded yet, or the heads do not fit.
        """
        if self.position == 0:
            raise ValueError("attend needs at least one token in the cache, got position=0.")
        if self._reads_held and key_mask is bias is sinks is softcap is None:
            return self._attend_held(q, scale)
        batch, heads, _, head_dim = q.shape
        positions, allowed = _reads(self.pattern, self.position - 1)
        masked = allowed is not None or key_mask is not None
        k, v = self._store.read(positions, ordered=masked or bias is not None)
        kv_heads = k.shape[1]
        if heads % kv_heads or (allowed is not None and len(allowed) != heads):
            raise ValueError(
                f"heads of q must be a multiple of kv_heads={kv_heads} and fit the pattern's "
                f"heads={self.pattern.heads}, got {heads} heads."
            )
        if len(positions) == 0:
            return torch.zeros_like(q)
        # the queries of a group become rows of one small attention, so that keys are not copied
        grouped = q.reshape(batch, kv_heads, heads // kv_heads, head_dim).to(k.dtype)
        added = None if bias is None else bias(positions).to(k.dtype)
        if added is not None:
            added = added.reshape(batch, kv_heads, heads // kv_heads, -1)
        mask = self._mask(positions, allowed, key_mask, grouped) if masked else None
        out = attend_some(grouped, k, v, mask, scale, added, sinks, softcap)
        return out.reshape(q.shape).to(q.dtype)

    def _attend_held(self, q: Tensor, scale: float | None) -> Tensor:
        """`attend` where all that is held is read."""
        k, v = self._store.held_data()
        batch, heads, _, head_dim = q.shape
        if heads % k.shape[1]:
            raise ValueError(
                f"heads of q must be a multiple of kv_heads={k.shape[1]}, got {heads} heads."
            )
        if k.shape[1] != heads or k.dtype != q.dtype:
            grouped = q.reshape(batch, k.shape[1], -1, head_dim).to(k.dtype)
            out = F.scaled_dot_product_attention(grouped, k, v, scale=scale)
            return out.reshape(q.shape).to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, scale=scale)

    @staticmethod
    def _mask(
        positions: Tensor, allowed: Tensor | None, key_mask: Tensor | None, grouped: Tensor
    ) -> Tensor:
        """Which of the keys at `positions` count, broadcast to (batch, kv_heads, group, keys)."""
        mask = torch.ones((), dtype=torch.bool, device=grouped.device)
        if allowed is not None:
            mask = allowed.to(grouped.device).reshape(1, *grouped.shape[1:3], -1)
        if key_mask is not None:
            mask = mask & key_mask[:, positions.to(key_mask.device)][:, None, None]
        return mask

    def _check_tokens(self, k: Tensor, v: Tensor) -> None:
        _, batch, kv_heads, _, head_dim = self._store.data.shape
        tokens = k.shape[2]
        expected = (batch, kv_heads, tokens, head_dim)
        if k.shape != expected or v.shape != expected:
            raise ValueError(
                "k and v must be (batch, kv_heads, tokens, head_dim) = "
                f"({batch}, {kv_heads}, any, {head_dim}), got {tuple(k.shape)} and "
                f"{tuple(v.shape)}."
            )
        end = self.position + tokens
        if self.max_length is not None and end > self.max_length:
            raise ValueError(
                f"the cache holds at most max_length={self.max_length} tokens, got {end}; "
                "create it with a larger max_length."
            )


def attend_some(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float | None,
    added: Tensor | None = None,
    sinks: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Dense attention under a bool mask, and a bias `added`; zeros for a query without keys.

    Args:
        q: (batch, kv_heads, heads of a group, head_dim).
        k, v: (batch, kv_heads, keys, head_dim).
        sinks: (heads,).
    """
    some, dead = added, None
    if mask is not None:
        some, dead = open_dead_rows(mask)
        if added is not None:
            some = added.masked_fill(~some, -torch.inf)
    if sinks is softcap is None:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=some, scale=scale)
    else:
        rows = None if sinks is None else sinks.view(*q.shape[1:3], 1)
        out = shaped_attention(q, k, v, some, scale, softcap=softcap, sinks=rows)
    return out if dead is None else out.masked_fill(dead, 0.0)


def _check_prefix(pattern: Pattern, first: int) -> None:
    """Raise ValueError where tokens from `first` on come too late or alone."""
    whole = pattern.decodes_from or 0
    if first < whole:
        raise ValueError(
            f"the first {whole} tokens must come in one call, for they read each other under "
            f"{pattern}, got a part of them from token {first} on; use a prompt, or in prefill a "
            f"chunk, of at least {whole} tokens."
        )


def _head_patterns(pattern: Pattern) -> tuple[Pattern, ...]:
    return (pattern,) if pattern.heads is None else pattern.per_head()


def _horizon(heads: tuple[Pattern, ...]) -> tuple[int, int] | None:
    """The prefix and window that cover the reach of every head."""
    bounds = [one.horizon() for one in set(heads)]
    known = [b for b in bounds if b is not None]
    if len(known) < len(bounds):
        return None
    return max(b[0] for b in known), max(b[1] for b in known)


def _positions(values: range | Tensor) -> Tensor:
    if isinstance(values, range):
        return torch.arange(values.start, max(values.start, values.stop), device="cpu")
    return values.to(device="cpu", dtype=torch.long)


def _keeps(heads: tuple[Pattern, ...], position: int) -> range | Tensor:
    """What the cache must hold after `position`, for any head; ascending."""
    if position + 1 < max(one.decodes_from or 0 for one in heads):
        return range(position + 1)  # a prefix that is not complete is read whole
    if len(set(heads)) == 1:
        return heads[0].keeps(position)
    return torch.cat([_positions(one.keeps(position)) for one in set(heads)]).unique()


def _is_all(pattern: Pattern, length: int) -> bool:
    """Whether a cache still holds all of `length` tokens after the last of them."""
    kept = _keeps(_head_patterns(pattern), length - 1) if length else range(0)
    return isinstance(kept, range) and len(kept) == length


@remember(entries=64)
def _reads(pattern: Pattern, position: int) -> tuple[Tensor, Tensor | None]:
    """Keys that `position` reads, and (heads, keys) True = reads, where heads differ.

    Cached because the layers of a model, one after the other, ask the same question.
    """
    _check_prefix(pattern, position)
    heads = _head_patterns(pattern)
    if len(set(heads)) == 1:
        return _positions(heads[0].reads(position)), None
    reads = [_positions(one.reads(position)) for one in heads]
    keys = torch.cat(reads).unique()
    return keys, torch.stack([torch.isin(keys, one) for one in reads])
