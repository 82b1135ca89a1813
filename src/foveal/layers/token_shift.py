"""Token shift: features taken over from neighbouring tokens, at no cost and without weights."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from foveal.caches import DecodingState
from foveal.caches.state import lasting
from foveal.layers.checks import Device
from foveal.layers.packing import Context


class Part(NamedTuple):
    """Features `start` to `stop` come from `back` tokens before; with `width` not across rows."""

    start: int
    stop: int
    back: int
    width: int = 0


def shift_tokens(x: Tensor, shifts: Sequence[int], mask: Tensor | None = None) -> Tensor:
    """Move parts of the features along the sequence: x (batch, tokens, dim) -> same.

    The features are cut into as many parts as there are shifts; part i comes from the token
    `shifts[i]` places before (after, where negative), zeros where there is none or where it is
    not real. Features that remain stay.

    Args:
        mask: (batch, tokens) bool, True = real.
    """
    return _moved(x, _parts(x.shape[-1], shifts), mask)


def _parts(dim: int, shifts: Sequence[int]) -> list[Part]:
    size = dim // len(shifts)
    return [Part(i * size, (i + 1) * size, back) for i, back in enumerate(shifts) if back]


def _moved(x: Tensor, parts: Sequence[Part], mask: Tensor | None = None) -> Tensor:
    """x (batch, tokens, dim) with the parts taken over, from tokens that are real."""
    ends = [0, *(end for part in parts for end in part[:2]), x.shape[-1]]
    owners = [None, *(owner for part in parts for owner in (part, None))]
    cuts = [(b - a, part) for (a, b), part in zip(pairwise(ends), owners, strict=True) if b > a]
    pieces = list(x.split([size for size, _ in cuts], -1))
    for i, (_, part) in enumerate(cuts):
        if part is None:
            continue
        source = pieces[i] if mask is None else pieces[i] * mask[..., None].to(x.dtype)
        source = _shift(source, part.back)
        if part.width:
            first = torch.arange(x.shape[1], device=x.device) % part.width == 0
            source = source.masked_fill(first[:, None], 0.0)
        pieces[i] = source
    return torch.cat(pieces, -1)


def _shift(x: Tensor, amount: int) -> Tensor:
    """Tokens of x (batch, tokens, dim) moved `amount` places to later positions."""
    length = x.shape[1]
    if torch.compiler.is_exporting():  # a slice would ask whether there are so many
        before, after = max(0, amount), max(0, -amount)
        places = torch.arange(length, device=x.device) + after
        return torch.nn.functional.pad(x, (0, 0, before, after)).index_select(1, places)
    amount = max(-length, min(amount, length))
    return torch.nn.functional.pad(x, (0, 0, amount, -amount))


class TokenShift:
    """Features of neighbouring tokens, for a whole sequence or token by token.

    Half of a word's features come from the word before; of a pixel's, a quarter from the pixel
    above and a quarter from the pixel to the left. As PreShiftToken of dalle-pytorch, but a text
    shorter than the full one is shifted too, so that its features do not depend on what follows.

    Args:
        dim: features of a token.
        text_length: words in front of the image, the start token included; all by default.
        width: of the image in tokens.
        shifts: in place of a word's half, as in shift_tokens; none negative where it is decoded.
        masked: False takes over from tokens that are not real too.
    """

    def __init__(
        self,
        dim: int,
        text_length: int = sys.maxsize,
        width: int = 0,
        shifts: Sequence[int] = (),
        masked: bool = True,
    ) -> None:
        half, quarter = -(-dim // 2), -(-dim // 4)
        left = Part(quarter, min(dim, 2 * quarter), 1, width)
        self.words = _parts(dim, shifts) if shifts else [Part(0, half, 1)]
        self.pixels = [Part(0, quarter, width), left] if width else []
        self.text_length, self.masked = text_length, masked
        parts = [*self.words, *self.pixels]
        self.reach = max([1, *(part.back for part in parts)])
        self.kept = max([0, *(part.stop for part in parts)])

    def __call__(self, x: Tensor, mask: Tensor | Context | None = None) -> Tensor:
        """x (batch, tokens, dim) from position 0 on, mask (batch, tokens) True = real -> same."""
        if isinstance(mask, Context):
            return self._within(x, mask)
        mask, split = mask if self.masked else None, self.text_length
        if not self.pixels or x.shape[1] <= split:
            return _moved(x, self.words, mask)
        text, image = (None, None) if mask is None else (mask[:, :split], mask[:, split:])
        words = _moved(x[:, :split], self.words, text)
        return torch.cat((words, _moved(x[:, split:], self.pixels, image)), 1)

    def _within(self, x: Tensor, context: Context) -> Tensor:
        """A part of a sequence, x (batch, tokens, dim) -> same: others have the neighbours."""
        source, real = x[..., : self.kept], context.mask if self.masked else None
        if real is not None:
            source = source * real[..., None].to(x.dtype)
        backs = [part.back for part in (*self.words, *self.pixels)]
        before, after = max(0, *backs), max(0, *(-back for back in backs))
        seen = context.rows(source, [(a - before, b + after) for a, b in context.spans])
        places = context.places(x.shape[1], x.device)
        words = min(self.text_length, context.length) if self.pixels else context.length
        return self._taken(x, seen, before, places, words)

    def _taken(
        self, x: Tensor, seen: Tensor, before: int, places: Tensor, words: int = sys.maxsize
    ) -> Tensor:
        """x (batch, tokens, dim) at places (tokens,) -> shifted, from the features of tokens
        `before` of it on, seen (batch, before + tokens or more, kept); words end at `words`."""
        pixel, count = places - self.text_length, x.shape[1]
        shifted = (x.clone(), x.clone())
        for out, at, parts in zip(
            shifted, (places, pixel), (self.words, self.pixels), strict=True
        ):
            for start, stop, back, width in parts:
                stands = at % width != 0 if width else at >= back
                if back < 0:
                    stands = at - back < words
                source = seen[:, before - back :][:, :count, start:stop]
                out[..., start:stop] = source * stands[:, None]
        return torch.where((pixel < 0)[:, None], *shifted) if self.pixels else shifted[0]

    # -- decoding ---------------------------------------------------------------------------

    @lasting
    def make_cache(self, batch: int, dtype: torch.dtype, device: Device) -> DecodingState:
        """An empty state: the features (batch, reach, kept) that later tokens take over."""
        rows = torch.zeros(batch, self.reach, self.kept, dtype=dtype, device=device)
        return DecodingState([], tensors={"rows": rows})

    def prefill(self, x: Tensor, cache: DecodingState) -> Tensor:
        """The shift of the first tokens x (batch, tokens, dim) -> same, remembered."""
        count = x.shape[1]
        stays = torch.arange(max(0, count - self.reach), count, device=x.device)
        rows = cache.tensors["rows"]
        rows[:, stays % self.reach] = x[:, stays, : self.kept].to(rows.dtype)
        cache.position = count
        return self(x)

    def step(self, x: Tensor, cache: DecodingState) -> Tensor:
        """x (batch, 1, dim), which the caller gives away -> shifted, in place."""
        rows, position = cache.tensors["rows"], cache.position
        cache.position += 1
        if cache.place is not None:
            return self._step_at(x, rows, cache.place.view(1))
        own = x[..., : self.kept].clone()
        place, parts = position, self.words
        if self.pixels and position >= self.text_length:
            place, parts = position - self.text_length, self.pixels
        for start, stop, back, width in parts:
            seen = place >= back and (not width or place % width)
            at = (position - back) % self.reach
            x[..., start:stop] = rows[:, at : at + 1, start:stop] if seen else 0.0
        rows[:, position % self.reach] = own[:, 0]
        return x

    def extend(self, x: Tensor, cache: DecodingState) -> Tensor:
        """The shift of many more tokens x (batch, tokens, dim) -> same, remembered."""
        rows, count = cache.tensors["rows"], x.shape[1]
        first = cache.position if cache.place is None else cache.place
        cache.position += count
        places = torch.arange(count, device=x.device) + first
        back = places[:1] + torch.arange(-self.reach, 0, device=x.device)
        before = rows[:, back % self.reach].to(x.dtype)
        seen = torch.cat((before, x[..., : self.kept]), 1)
        shifted = self._taken(x, seen, self.reach, places)
        stays = places[-self.reach :]
        rows[:, stays % self.reach] = x[:, count - len(stays) :, : self.kept].to(rows.dtype)
        return shifted

    def _step_at(self, x: Tensor, rows: Tensor, place: Tensor) -> Tensor:
        """The same at a position (1,) that no Python number depends on."""
        pixel = place - self.text_length
        shifted = (x.clone(), x.clone())
        for out, at, parts in zip(shifted, (place, pixel), (self.words, self.pixels), strict=True):
            for start, stop, back, width in parts:
                seen = at >= back if not width else at % width != 0
                before = rows.index_select(1, (place - back) % self.reach)
                out[..., start:stop] = before[..., start:stop] * seen
        rows.index_copy_(1, place % self.reach, x[..., : self.kept].to(rows.dtype))
        return torch.where(pixel < 0, *shifted)
