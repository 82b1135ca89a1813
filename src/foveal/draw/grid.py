"""Several small pictures in one PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foveal.common.files import write_file

_LEAST_SIDE, _GAP = 96, 4


def draw_grid(images: Any, path: Path, columns: int = 4) -> Path:
    """Pictures side by side, small ones enlarged without smoothing.

    Args:
        images: uint8 (n, height, width, 3), a numpy array.
        columns: in a row.
    """
    from PIL import Image

    count, height, width = images.shape[:3]
    zoom = max(1, -(-_LEAST_SIDE // height))
    high, wide = height * zoom + _GAP, width * zoom + _GAP
    columns = min(columns, count)
    sheet = Image.new("RGB", (columns * wide + _GAP, -(-count // columns) * high + _GAP), "white")
    for number, image in enumerate(images):
        picture = Image.fromarray(image).resize(
            (width * zoom, height * zoom), Image.Resampling.BOX
        )
        row, column = divmod(number, columns)
        sheet.paste(picture, (_GAP + column * wide, _GAP + row * high))
    form = path.suffix.removeprefix(".").lower().replace("jpg", "jpeg") or "png"
    write_file(path, lambda partial: sheet.save(partial, format=form))
    return path
