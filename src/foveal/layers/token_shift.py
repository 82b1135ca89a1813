"""Token shift for text followed by an image: features taken from the neighbours before."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.caches import DecodingState
from foveal.layers.checks import Device


class TokenShift:
    """Half of a word's features come from the word before; of a pixel's, a quarter from the
    pixel above and a quarter from the pixel to the left. What lies outside is zero.

    Without weights. As PreShiftToken of dalle-pytorch, but a text shorter than the full one is
    shifted too, so that its features do not depend on what follows.

    Args:
        dim: features of a token.
        text_length: words in front of the image, the start token included.
        width: of the image in tokens.
    """

    def __init__(self, dim: int, text_length: int, width: int) -> None:
        self.text_length, self.width = text_length, width
        self.quarter = -(-dim // 4)
        self.half = -(-dim // 2)
        self.kept = max(self.half, min(dim, 2 * self.quarter))

    def __call__(self, x: Tensor) -> Tensor:
        """x (batch, tokens, dim) from position 0 on -> same."""
        text, image = x[:, : self.text_length], x[:, self.text_length :]
        before = F.pad(text[..., : self.half], (0, 0, 1, 0))[:, : text.shape[1]]
        text = torch.cat((before, text[..., self.half :]), -1)
        if not image.shape[1]:
            return text
        count, one, two = image.shape[1], self.quarter, 2 * self.quarter
        above = F.pad(image[..., :one], (0, 0, self.width, 0))[:, :count]
        left = F.pad(image[..., one:two], (0, 0, 1, 0))[:, :count]
        first = torch.arange(count, device=x.device) % self.width == 0
        left = left.masked_fill(first[:, None], 0.0)
        return torch.cat((text, torch.cat((above, left, image[..., two:]), -1)), 1)

    # -- decoding ---------------------------------------------------------------------------

    def make_cache(self, batch: int, dtype: torch.dtype, device: Device) -> DecodingState:
        """An empty state: the features of the last row of tokens that later ones take over."""
        rows = torch.zeros(self.width, batch, 1, self.kept, dtype=dtype, device=device)
        return DecodingState([], tensors={"rows": rows})

    def prefill(self, x: Tensor, cache: DecodingState) -> Tensor:
        """The shift of the first tokens, remembered."""
        count = x.shape[1]
        stays = torch.arange(max(0, count - self.width), count, device=x.device)
        kept = x[:, stays, None, : self.kept].transpose(0, 1)
        rows = cache.tensors["rows"]
        rows[stays % self.width] = kept.to(rows.dtype)
        cache.position = count
        return self(x)

    def step(self, x: Tensor, cache: DecodingState) -> Tensor:
        """x (batch, 1, dim), which the caller gives away -> shifted, in place."""
        rows, position = cache.tensors["rows"], cache.position
        cache.position += 1
        if cache.place is not None:
            return self._step_at(x, rows, cache.place.view(1))
        before = rows[(position - 1) % self.width]
        place = position - self.text_length
        one, two, here = self.quarter, 2 * self.quarter, position % self.width
        own = x[..., : self.kept].clone()
        if place < 0:
            # nothing was seen before the first word, and the rows are zero there
            x[..., : self.half] = before[..., : self.half]
        else:
            x[..., :one] = rows[here, ..., :one] if place >= self.width else 0.0
            x[..., one:two] = before[..., one:two] if place % self.width else 0.0
        rows[here] = own
        return x

    def _step_at(self, x: Tensor, rows: Tensor, place: Tensor) -> Tensor:
        """The same at a position (1,) that no Python number depends on."""
        before = rows.index_select(0, (place - 1) % self.width)[0]
        here, pixel = place % self.width, place - self.text_length
        one, two = self.quarter, 2 * self.quarter
        above = rows.index_select(0, here)[0, ..., :one] * (pixel >= self.width)
        left = before[..., one:two] * (pixel % self.width != 0)
        word = torch.cat((before[..., : self.half], x[..., self.half :]), -1)
        image = torch.cat((above, left, x[..., two:]), -1)
        rows.index_copy_(0, here, x[None, ..., : self.kept].to(rows.dtype))
        return torch.where(pixel < 0, word, image).to(x.dtype)
