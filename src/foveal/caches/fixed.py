"""Decoding state at fixed addresses: what a step needs to be recorded once and replayed."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.caches.attention import AttentionCache, attend_some
from foveal.caches.state import DecodingState
from foveal.caches.summary import summary
from foveal.patterns import Pattern

LONGEST = 1 << 14
"""Most tokens: the mask of a pattern is held whole, a byte a pair."""


class FixedCache:
    """The keys and values of one attention layer, each at the place of its position.

    A query reads all places under its row of the pattern's mask. So no shape, address or Python
    number depends on the position, which is a tensor that all layers of a model share.

    Args:
        cache: a filled cache, whose contents are copied.
        max_length: most tokens that will ever come.
        place: () int64, the position of the next token; whoever steps the model advances it.
        masks: those of other layers, (..., max_length, max_length) by pattern, to be shared.
    """

    def __init__(
        self,
        cache: AttentionCache,
        max_length: int,
        place: Tensor,
        masks: dict[Pattern, tuple[Tensor, bool]],
    ) -> None:
        kept = cache.kept()[1]
        self.pattern, self.position = cache.pattern, place
        self.data = kept.new_zeros((*kept.shape[:3], max_length, kept.shape[4]))
        if self.pattern not in masks:
            mask = self.pattern.mask(max_length)
            masks[self.pattern] = mask.to(place.device), bool(mask.any(-1).all())
        self._mask, self._all_read = masks[self.pattern]
        self.load(cache)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return summary(self, "cache")

    @property
    def num_bytes(self) -> int:
        """Bytes of memory held for keys and values."""
        return self.data.numel() * self.data.element_size()

    def clone(self) -> FixedCache:
        raise TypeError("a FixedCache belongs to one recorded step and cannot be cloned.")

    def load(self, cache: AttentionCache) -> None:
        """Take over what another cache holds; all else stays, and is never read."""
        positions, kv = cache.kept()
        self.data.index_copy_(3, positions.to(self.data.device), kv)

    def append(self, k: Tensor, v: Tensor) -> FixedCache:
        """Load the next token, or several: k, v (batch, kv_heads, tokens, head_dim)."""
        kv = torch.stack((k, v)).to(self.data.dtype)
        self.data.index_copy_(3, self._places(k.shape[2]), kv)
        return self

    def extend(self, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        """Load tokens and let them attend: q (batch, heads, tokens, head_dim) -> same."""
        return self.append(k, v).attend(q, **options)

    def _places(self, count: int) -> Tensor:
        """Positions of the newest tokens: (count,)."""
        if count == 1:
            return self.position.view(1)
        return self.position + torch.arange(count, device=self.position.device)

    def attend(
        self,
        q: Tensor,
        scale: float | None = None,
        key_mask: Any = None,
        bias: Any = None,
        sinks: Tensor | None = None,
        softcap: float | None = None,
        relate: Any = None,
    ) -> Tensor:
        """q (batch, heads, tokens, head_dim), of the tokens that `append` took; no key_mask, no
        bias."""
        if key_mask is not None or bias is not None or relate is not None:
            raise ValueError("a recorded step takes neither a key_mask nor relative positions.")
        k, v = self.data
        batch, heads, count, head_dim = q.shape
        grouped = q.reshape(batch, k.shape[1], -1, head_dim).to(k.dtype)
        row = self._mask.index_select(-2, self._places(count))
        if self.pattern.heads is not None:
            row = row.reshape(1, *grouped.shape[1:3], -1)
        elif count > 1:  # the tokens of each head of a group, one head after the other
            row = row.repeat(heads // k.shape[1], 1)
        if sinks is not None and count > 1:
            sinks = sinks.repeat_interleave(count)
        if self._all_read and sinks is softcap is None:
            out = F.scaled_dot_product_attention(grouped, k, v, attn_mask=row, scale=scale)
        else:
            out = attend_some(grouped, k, v, row, scale, None, sinks, softcap)
        return out.reshape(q.shape).to(q.dtype)


def fix(
    state: DecodingState, max_length: int, device: torch.device
) -> tuple[DecodingState, Tensor]:
    """A copy of a decoding state at fixed addresses, for up to `max_length` tokens, and its place.

    Raises:
        ValueError: the state pools tokens (Pyramid), or max_length is above 16,384.
    """
    if max_length > LONGEST:
        raise ValueError(
            f"a recorded step reads all places of a sequence: max_length must be at most "
            f"{LONGEST}, got {max_length}; use the ordinary step for longer ones."
        )
    place = torch.tensor(state.position, device=device)
    masks: dict[Pattern, tuple[Tensor, bool]] = {}

    def fixed(part: Any) -> Any:
        if part is None:
            return None
        if isinstance(part, AttentionCache):
            return FixedCache(part, max_length, place, masks)
        if not isinstance(part, DecodingState):
            raise ValueError(
                f"a {type(part).__name__} cannot be recorded, for what it does depends on the "
                "position; use the ordinary step."
            )
        tensors = {name: value.clone() for name, value in part.tensors.items()}
        return DecodingState([fixed(one) for one in part.parts], part.position, tensors, place)

    return fixed(state), place


def load(fixed: DecodingState, state: DecodingState) -> None:
    """Take over the contents of another state of the same model and batch, in place."""
    assert fixed.place is not None
    fixed.place.fill_(state.position)
    _copy(fixed, state)


def _copy(fixed: DecodingState, state: DecodingState) -> None:
    fixed.position = state.position
    for name, value in state.tensors.items():
        fixed.tensors[name].copy_(value)
    for ours, theirs in zip(fixed.parts, state.parts, strict=True):
        if isinstance(ours, FixedCache):
            ours.load(theirs)
        elif ours is not None:
            _copy(ours, theirs)
