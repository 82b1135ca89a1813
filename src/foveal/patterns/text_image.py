"""Text tokens followed by image tokens (DALL-E)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveal.patterns.base import Overlap, Pattern
from foveal.patterns.full import Full
from foveal.patterns.needs import Stretches, moved, together
from foveal.patterns.offsets import Codes
from foveal.patterns.tiling import Grid, Places, TileGroup, Tiling


@dataclass(frozen=True)
class TextImage(Pattern):
    """Text reads the text before it; the image reads all of the text, and itself by a pattern.

    Ramesh et al., "Zero-Shot Text-to-Image Generation" (2021), appendix B.1.

    Args:
        text_length: number of text tokens at the front of the sequence.
        image_pattern: pattern among the image tokens, whose positions are counted from the first
            image token.
        causal_text: text reads the text before it, or with False all of the text. The whole is
            causal when this is and the image pattern is.

    Raises:
        ValueError: text_length is negative; image_pattern is no pattern, or one that has fewer
            queries than keys.
    """

    text_length: int
    image_pattern: Pattern
    causal_text: bool = True

    def __post_init__(self) -> None:
        self._check_ints(0, "text_length")
        self._check_bools("causal_text")
        if not isinstance(self.image_pattern, Pattern):
            raise ValueError(f"image_pattern must be a Pattern, got {self.image_pattern!r}.")
        if _strides_queries(self.image_pattern):
            raise ValueError(
                "image_pattern must have a query for each of its tokens, got "
                f"{self.image_pattern}, which strides its queries."
            )

    @property
    def causal(self) -> bool:
        return self.causal_text and self.image_pattern.is_causal

    @property
    def always_reads(self) -> bool:  # type: ignore[override]
        return self.image_pattern.always_reads

    @property
    def heads(self) -> int | None:
        return self.image_pattern.heads

    def per_head(self) -> tuple[Pattern, ...]:
        images = self.image_pattern.per_head()
        return tuple(TextImage(self.text_length, one, self.causal_text) for one in images)

    @property
    def natural_length(self) -> int | None:
        image = self.image_pattern.natural_length
        return None if image is None else self.text_length + image

    def check_length(self, length: int) -> None:
        super().check_length(length)
        self.image_pattern.check_length(max(0, length - self.text_length))

    def allows(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        text = self.text_length
        to_text = k_idx < text
        if self.causal_text:
            to_text = to_text & (k_idx <= q_idx)
        in_image = (q_idx >= text) & (k_idx >= text)
        # positions before the image are moved inside, for the pattern need not bear them
        image = self.image_pattern.allows((q_idx - text).clamp(min=0), (k_idx - text).clamp(min=0))
        return to_text | (in_image & image)

    @property
    def bias_size(self) -> int | None:
        """The rows of the image, then two: of pixels that read text, and of text."""
        size = self.image_pattern.bias_size
        return None if size is None else size + 2

    def bias_place(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        text, size = self.text_length, self.image_pattern.bias_size
        if size is None:
            return super().bias_place(q_idx, k_idx)
        place = self.image_pattern.bias_place((q_idx - text).clamp(min=0), (k_idx - text).clamp(0))
        place = torch.where((q_idx >= text) & (k_idx < text), size, place)
        return torch.where(q_idx < text, size + 1, place)

    @property
    def has_offset_codes(self) -> bool:
        return self.image_pattern.has_offset_codes

    def offset_codes(self, n_queries: int, n_keys: int) -> Codes:
        text, size = self.text_length, self.image_pattern.bias_size or 0
        image = self.image_pattern.offset_codes(max(0, n_queries - text), max(0, n_keys - text))
        # three stretches of differences: within the image, of it with text, of text
        first = int(image.query.min()) if len(image.query) else 0
        last = int(image.query.max()) if len(image.query) else 0
        query = image.query.new_full((min(text, n_queries),), last + 1)
        key = image.key.new_full((min(text, n_keys),), first - len(image.rows))
        of_text = image.rows.new_full((last - first + 2,), size)
        of_text[-1] = size + 1
        return Codes(
            torch.cat([query, image.query]),
            torch.cat([key, image.key]),
            torch.cat([image.rows, of_text]),
        )

    def overlap(self, q_first: Tensor, q_last: Tensor, k_first: Tensor, k_last: Tensor) -> Overlap:
        text = self.text_length
        some, every = self.image_pattern.overlap(
            *((edge - text).clamp(min=0) for edge in (q_first, q_last, k_first, k_last))
        )
        some = some & (q_last >= text) & (k_last >= text)
        every = every & (q_first >= text) & (k_first >= text)
        some_text, all_text = k_first < text, k_last < text
        if self.causal_text:
            some_text, all_text = some_text & (k_first <= q_last), all_text & (k_last <= q_first)
        return some | some_text, every | all_text

    def _tiles(self, length: int) -> Tiling:
        text = min(self.text_length, length)
        groups = list(Full(self.causal_text).tiles(text).groups) if text else []
        image = self.image_pattern.tiles(length - text)
        if not image.covers_all:  # a pixel without pixels to read still reads the text
            return super()._tiles(length)
        shifted = image.shift(text, text, length, length)
        groups += [self._with_text(group, text) for group in shifted.groups]
        return Tiling(length, length, tuple(groups))

    def _with_text(self, group: TileGroup, text: int) -> TileGroup:
        if not text:
            return group
        prefix: Places = Grid(0, ((group.num_tiles, 0),), ((text, 1),))
        mask = group.mask
        if mask is not None:
            mask = torch.nn.functional.pad(mask, (text, 0), value=True)
        return TileGroup(group.queries, (prefix, *group.keys), mask)

    def needs(self, first: int, last: int, length: int) -> Stretches:
        text = min(self.text_length, length)
        if first >= last:
            return ()
        front = min(last, text) if self.causal_text and last <= text else text
        image = self.image_pattern.needs(max(0, first - text), max(0, last - text), length - text)
        return together([((0, front),) if front else (), moved(image, text)])

    def reads(self, position: int) -> Tensor:
        self._require_causal("reads")
        text = self.text_length
        if position < text:
            return torch.arange(position + 1, device="cpu")
        return torch.cat(
            [torch.arange(text, device="cpu"), self.image_pattern.reads(position - text) + text]
        )

    def horizon(self) -> tuple[int, int] | None:
        image = self.image_pattern.horizon()
        return None if image is None else (self.text_length + image[0], image[1])

    def keeps(self, position: int) -> range | Tensor:
        self._require_causal("keeps")
        text = self.text_length
        if position < text:
            return range(position + 1)
        image = torch.as_tensor(
            self.image_pattern.keeps(position - text), dtype=torch.long, device="cpu"
        )
        return torch.cat([torch.arange(text, device="cpu"), image + text])

    def num_pairs(self, length: int) -> int:
        text = min(self.text_length, length)
        heads = self.heads or 1
        own = text * (text + 1) // 2 if self.causal_text else text * text
        return heads * (own + (length - text) * text) + self.image_pattern.num_pairs(length - text)


def _strides_queries(pattern: Pattern) -> bool:
    """Whether a pattern has fewer queries than keys at some length."""
    if type(pattern).num_queries is Pattern.num_queries:
        return False
    try:
        return any(pattern.num_queries(length) != length for length in (2, 1009))
    except ValueError:  # it has queries for a whole image only
        return True
