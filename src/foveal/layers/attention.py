"""Self-attention in which a pattern says who reads whom."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from foveal.caches import AttentionCache, PyramidCache
from foveal.common.arguments import checked
from foveal.common.checks import check_dense
from foveal.layers.checks import Device, check_dropout, check_sizes, head_size, join_heads
from foveal.layers.dropout import Dropout
from foveal.layers.grid_rotary import Rotation
from foveal.layers.linear import project
from foveal.layers.packing import Context
from foveal.layers.position_bias import PositionBias
from foveal.layers.positions import Positions, relative_table
from foveal.layers.relative import Relative, RelativeTerms
from foveal.layers.rotary import Rotary
from foveal.layers.weights import device_of, state_dtype
from foveal.ops import TableBias, attend
from foveal.ops.checks import as_softcap
from foveal.ops.table import Alibi
from foveal.patterns import Pattern, Pyramid
from foveal.patterns.subclasses import is_a

AttentionState = AttentionCache | PyramidCache
Turn = Positions | Rotation
"""What turns projections from a position on: an object that layers share, or a table."""


class SelfAttention(nn.Module):
    """Multi-head self-attention over a pattern, with cached decoding where it is causal.

    Args:
        dim: features in and out.
        pattern: who reads whom.
        heads: number of heads.
        dim_head: features of a head; None = dim / heads.
        kv_heads: number of key and value heads, each shared by heads / kv_heads queries
            (grouped-query attention); None = heads.
        rotary: positions: True = a Rotary of its own; any Positions to share their table, a
            Relative for relative attention in their place, a PositionBias (AlibiPositions,
            T5Positions) to add to the logits; False = none.
        dropout: on the attention weights.
        relative_bias: learn a table of relative positions, over a pattern that takes one (such as
            a Pyramid): True = one a head, "shared" = one for all heads.
        rotate_values: rotary positions turn the values too, as dalle-pytorch does; False turns
            queries and keys only, as RoFormer (Su et al., 2021).
        out_dropout: dropout on the output, as a second part of `to_out`; None = no such part.
        softcap: bound of the logits, see `attend`; None = none.
        sinks: learn the logit of one more key a head that has no value, see `attend`; zeros at
            first.

    Attributes:
        stride: step from one token to the next, in the positions of relative attention.

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
        rotary: bool | Positions | Relative | PositionBias = True,
        dropout: float = 0.0,
        *,
        relative_bias: bool | str = False,
        rotate_values: bool = False,
        out_dropout: float | None = None,
        softcap: float | None = None,
        sinks: bool = False,
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
        self.pattern, self.dropout, self.rotate_values = pattern, dropout, rotate_values
        relative = rotary if isinstance(rotary, Relative) else None
        rotary = False if isinstance(rotary, Relative) else rotary
        self.position_bias = rotary if isinstance(rotary, PositionBias) else None
        rotary = False if isinstance(rotary, PositionBias) else rotary
        self.rotary = Rotary(self.dim_head) if rotary is True else rotary or None
        self.to_qkv = nn.Linear(dim, (heads + 2 * self.kv_heads) * self.dim_head, bias=False)
        self.to_out = nn.Linear(heads * self.dim_head, dim)
        if out_dropout is not None:
            check_dropout(out_dropout)
            parts = (self.to_out, Dropout(out_dropout))
            self.to_out = nn.Sequential(*parts)  # type: ignore[assignment]
        self.relative = None if relative is None else RelativeTerms(relative)
        self.rel_bias = relative_table(pattern, relative_bias, heads)
        self._check_bias()
        self.softcap = as_softcap(softcap)
        if self.softcap is not None and relative is not None:
            raise ValueError(f"softcap cannot bound relative positions, got {softcap=}.")
        self.sinks = nn.Parameter(torch.zeros(heads)) if sinks else None
        self.stride = 1
        self._built = self._names()

    def _check_bias(self) -> None:
        if self.position_bias is None:
            return
        if self.position_bias.heads != self.heads:
            raise ValueError(
                f"{self.position_bias} must have the layer's heads, got heads={self.heads}."
            )
        if self.rel_bias is not None or self.pattern.pools:
            raise ValueError(
                f"{self.position_bias} cannot stand beside relative_bias, nor over {self.pattern} "
                "if it pools keys."
            )

    @property
    def bias(self) -> TableBias | Alibi | None:
        """What is added to the logits by the offset of a pair, as `attend` takes it."""
        if self.position_bias is not None:
            return self.position_bias()
        return None if self.rel_bias is None else TableBias(self.rel_bias)

    def extra_repr(self) -> str:
        shaping = "".join(f", {name}={value}" for name, value in self._shaping_words().items())
        return f"pattern={self.pattern}, heads={self.heads}, kv_heads={self.kv_heads}{shaping}"

    def _shaping_words(self) -> dict[str, Any]:
        words = {"softcap": self.softcap, "sinks": self.sinks is not None}
        return {name: value for name, value in words.items() if value}

    @property
    def shaping(self) -> dict[str, Any]:
        """What shapes the logits in `attend` and in caches alike: sinks and softcap, if any."""
        given = {"sinks": self.sinks, "softcap": self.softcap}
        return {name: value for name, value in given.items() if value is not None}

    _built: frozenset[str] = frozenset()

    def _names(self) -> frozenset[str]:
        parts = (vars(self), self._modules, self._parameters, self._buffers)
        return frozenset(name for part in parts for name in part) | {"_built"}

    @property
    def is_plain(self) -> bool:
        """Whether a step is known by its parts: the two projections, rotary positions of queries
        and keys, and a cache that is asked with `shaping`.

        A subclass is none, nor is a layer to which a stranger added anything.
        """
        options = (
            self.relative,
            self.rel_bias,
            self.position_bias,
            self.rotate_values or None,
        )
        return (
            type(self) is SelfAttention
            and all(one is None for one in options)
            and self._names() == self._built
        )

    def forward(self, x: Tensor, mask: Tensor | None = None, rotary: Turn | None = None) -> Tensor:
        """(batch, tokens, dim) -> same.

        Args:
            mask: (batch, tokens) bool, True = real; keys that are not real are read by nobody.
            rotary: positions in place of the layer's own.
        """
        if isinstance(mask, Context):
            return self._within(x, mask, rotary)
        return self._attend(*self._project(x, 0, rotary), mask)

    def _within(self, x: Tensor, context: Context, rotary: Turn | None) -> Tensor:
        """Tokens that are no rows of a batch, x (batch, tokens, dim) -> same."""
        turn = rotary or self.rotary
        q, k, v = self._project(x, 0, None if turn is None else context.turn(turn))
        pattern = context.within(self.pattern)
        return self._over(pattern, q, k, v, context.mask, context)

    def make_cache(
        self, batch: int, max_length: int | None = None, device: Device = None
    ) -> AttentionState:
        """An empty decoding state for `batch` rows; on the layer's device if None is given.

        Its keys and values are (batch, kv_heads, tokens that can still be read, dim_head).
        """
        device = device or device_of(self.to_qkv)
        where: Any = {"dtype": state_dtype(self.to_qkv), "device": device}
        sizes = (batch, self.kv_heads, self.dim_head, max_length)
        if is_a(self.pattern, Pyramid):
            if self.relative is not None:
                raise ValueError(f"relative positions cannot decode over {self.pattern}.")
            return PyramidCache(self.pattern, *sizes, heads=self.heads, **where)
        return AttentionCache(self.pattern, *sizes, **where)

    def prefill(
        self,
        x: Tensor,
        cache: AttentionState,
        mask: Tensor | None = None,
        rotary: Turn | None = None,
    ) -> tuple[Tensor, AttentionState]:
        """The forward pass over the first tokens, remembered in an empty cache.

        Args:
            x: (batch, tokens, dim).
            mask: (batch, tokens) bool, as in `forward`; the cache remembers all tokens.

        Returns:
            (batch, tokens, dim), and the cache.

        Raises:
            ValueError: the cache has seen tokens already.
        """
        if cache.position:
            raise ValueError(f"prefill needs an empty cache, got position={cache.position}.")
        q, k, v = self._project(x, 0, rotary)
        out = self._attend(q, k, v, mask)
        if isinstance(cache, PyramidCache):
            return out, cache.prefill(k, v, q)
        return out, cache.prefill(k, v)

    def step(
        self,
        x: Tensor,
        cache: AttentionState,
        mask: Tensor | None = None,
        rotary: Turn | None = None,
    ) -> tuple[Tensor, AttentionState]:
        """One more token.

        Args:
            x: (batch, 1, dim).
            mask: (batch, tokens seen, this one included) bool, True = real.

        Returns:
            (batch, 1, dim), and the cache.
        """
        q, k, v = self._project(x, cache.position, rotary)
        cache = cache.append(k, v)
        options: Any = self.shaping if mask is None else {"key_mask": mask, **self.shaping}
        if self.relative is not None:
            now = cache.position - 1
            q, options["bias"] = self.relative.newest(q, now, self.stride)
        elif (bias := self.bias) is not None:
            options["bias"] = self._bias_of(bias, q, cache)
        return project(self.to_out, join_heads(cache.attend(q, **options))), cache

    def extend(
        self,
        x: Tensor,
        cache: AttentionState,
        mask: Tensor | None = None,
        rotary: Turn | None = None,
    ) -> tuple[Tensor, AttentionState]:
        """Many more tokens: what as many calls of `step` give, or `prefill` of an empty cache.

        Args:
            x: (batch, tokens, dim).
            mask: (batch, tokens seen, these included) bool, True = real.

        Returns:
            (batch, tokens, dim), and the cache.
        """
        if isinstance(cache.position, int) and not cache.position:
            return self.prefill(x, cache, mask, rotary)
        q, k, v = self._project(x, cache.position, rotary)
        options: Any = self.shaping if mask is None else {"key_mask": mask, **self.shaping}
        if self.relative is not None:
            options["relate"] = self.relative.between(self.stride)
        elif (bias := self.bias) is not None:
            options["bias"] = bias
        return project(self.to_out, join_heads(cache.extend(q, k, v, **options))), cache

    def _project(
        self, x: Tensor, offset: int | Tensor, rotary: Turn | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q (batch, heads, tokens, dim_head); k, v (batch, kv_heads, tokens, dim_head)."""
        check_dense("x", x)
        turn = self.rotary if rotary is None else rotary
        qkv = project(self.to_qkv, x).unflatten(-1, (-1, self.dim_head))
        if turn is not None and self.rotate_values:
            qkv, turn = turn(qkv, offset), None
        # split, whose derivative joins the parts, and not slices, whose derivatives are added
        qk, v = qkv.split((self.heads + self.kv_heads, self.kv_heads), 2)
        if turn is not None:
            qk = turn(qk, offset)
        q, k = qk.transpose(1, 2).split((self.heads, self.kv_heads), 1)
        return q, k, v.transpose(1, 2)

    def _bias_of(self, bias: TableBias | Alibi, q: Tensor, cache: AttentionState) -> Any:
        """The bias as a cache takes it, for the newest query (batch, heads, 1, dim_head): a
        PyramidCache the table, others a function of the keys that are read."""
        if isinstance(cache, PyramidCache):
            return bias
        now = cache.position - 1

        def gained(places: Tensor) -> Tensor:
            places = places.to(q.device)
            found = bias.at(self.pattern, torch.full_like(places[:1], now), places)
            return found.expand(*q.shape[:2], -1)

        return gained

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """q, k, v as from `_project`, mask (batch, tokens) -> (batch, tokens, dim)."""
        return self._over(self.pattern, q, k, v, mask)

    def _over(
        self,
        pattern: Pattern,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        context: Context | None = None,
    ) -> Tensor:
        """`_attend` under a pattern that takes the place of the layer's own, in a context."""
        bias: Any = self.bias
        scale = None
        if self.relative is not None:
            scale = self.dim_head**-0.5
            places = None if context is None else context.places(q.shape[2], q.device)
            q, k, bias = self.relative.relate(q, k, pattern, self.stride, places)
        dropout = self.dropout if self.training else 0.0
        compute = attend if context is None else context.attend
        out = compute(
            q,
            k,
            v,
            pattern,
            bias=bias,
            key_mask=mask,
            scale=scale,
            dropout_p=dropout,
            sinks=self.sinks,
            softcap=self.softcap,
        )
        return project(self.to_out, join_heads(out))


class RelativeAttention(SelfAttention):
    """SelfAttention with the relative positions `shared` in place of rotary ones."""

    def __init__(
        self,
        dim: int,
        pattern: Pattern,
        heads: int,
        dim_head: int | None,
        kv_heads: int | None,
        shared: Relative,
        dropout: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(dim, pattern, heads, dim_head, kv_heads, shared, dropout, **options)
