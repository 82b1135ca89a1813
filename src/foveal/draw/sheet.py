"""Contact sheets: many small pictures in a grid, with or without captions."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

from torch import Tensor

from foveal.draw.style import Picture, image_as_png

_GAP, _LEAST, _FONT_SIZE = 6, 128, 11
_LETTERS_PER_PIXEL = 1 / 6


@overload
def draw_sheet(
    images: Tensor, path: None = None, *, captions: Sequence[str] = (), columns: int | None = None
) -> Picture: ...
@overload
def draw_sheet(
    images: Tensor, path: str | Path, *, captions: Sequence[str] = (), columns: int | None = None
) -> Path: ...
def draw_sheet(
    images: Tensor,
    path: str | Path | None = None,
    *,
    captions: Sequence[str] = (),
    columns: int | None = None,
) -> Picture | Path:
    """Write pictures as one PNG, row by row; small ones are enlarged by a whole factor.

    Args:
        images: (n, channels, height, width), float from 0 to 1; 1 or 3 channels.
        path: where the PNG goes; None returns its bytes.
        captions: one for each picture, or none.
        columns: pictures in a row; as many as make the sheet about square unless given.

    Raises:
        ValueError: no pictures, or another number of captions than of pictures.
    """
    from PIL import Image

    count, channels, height, width = images.shape
    if not count or channels not in (1, 3):
        raise ValueError(f"images must be (n, 1 or 3, height, width), got {tuple(images.shape)}.")
    if captions and len(captions) != count:
        raise ValueError(f"captions must be one a picture, {count}, got {len(captions)}.")
    columns = columns or math.ceil(math.sqrt(count))
    scale = max(1, math.ceil(_LEAST / max(height, width)))
    high, wide = scale * height, scale * width
    texts = [textwrap.wrap(text, max(8, int(wide * _LETTERS_PER_PIXEL))) for text in captions]
    below = max(map(len, texts), default=0) * (_FONT_SIZE + 3)
    rows = math.ceil(count / columns)
    size = (columns * (wide + _GAP) + _GAP, rows * (high + below + _GAP) + _GAP)
    sheet = Image.new("RGB", size, "white")
    pixels = (images.clamp(0, 1) * 255).round().byte().expand(-1, 3, -1, -1)
    for number, picture in enumerate(pixels.permute(0, 2, 3, 1).cpu().contiguous().numpy()):
        left = _GAP + (number % columns) * (wide + _GAP)
        top = _GAP + (number // columns) * (high + below + _GAP)
        one = Image.fromarray(picture).resize((wide, high), Image.Resampling.NEAREST)
        sheet.paste(one, (left, top))
        if texts:
            _write(sheet, "\n".join(texts[number]), (left, top + high + 1))
    return image_as_png(sheet, path)


def _write(sheet: Any, text: str, place: tuple[int, int]) -> None:
    from PIL import ImageDraw, ImageFont

    font = ImageFont.load_default(_FONT_SIZE)
    ImageDraw.Draw(sheet).multiline_text(place, text, fill="black", font=font, spacing=2)
