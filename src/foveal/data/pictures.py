"""Reading pictures of any kind with Pillow: to RGB, to a size, or named with what is wrong."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from foveal.common.inputs import require_file
from foveal.data.walk import printable

SUFFIXES = {
    *(".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"),
    *(".ico", ".tga", ".jp2", ".avif"),
}
_DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_MOST_BYTES = 1 << 30


class UnreadableImageError(ValueError):
    """A file is no picture, or a damaged one."""


PictureSource = str | Path | bytes | Callable[[], str | bytes]
"""A path, the bytes of a file, or what gives them."""


def read_picture(source: PictureSource, name: str = "") -> Any:
    """Decode a picture to an RGB `PIL.Image`.

    The first frame of an animation; transparent parts on white; grey, palette and CMYK converted;
    turned upright as its EXIF data says. Pixels of 16 bits are scaled to 8, those of 32 bits if
    one is above 255; floats lie between 0 and 1, or 0 and 255 if one is above 1.

    Args:
        source: a path, the bytes of a file, or what gives them.
        name: what to call it in errors; the path unless given.

    Raises:
        UnreadableImageError: the file is missing, empty, damaged, no picture or no file at all,
            or has pixels that are NaN, infinite, negative or out of range; names it.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    source = source() if callable(source) else source
    name = name or (printable(source) if not isinstance(source, bytes) else "a picture")
    try:
        raw = source if isinstance(source, bytes) else _bytes_of(Path(source), name)
        if not raw:
            raise UnreadableImageError(f"{name} is empty (0 bytes).")
        picture = Image.open(io.BytesIO(raw))
        _check_size(picture, name)
        picture.seek(0)
        picture.load()
        return to_rgb(ImageOps.exif_transpose(picture), name)
    except FileNotFoundError:
        raise UnreadableImageError(f"{name} does not exist.") from None
    except UnidentifiedImageError:
        raise UnreadableImageError(f"{name} is not a picture that Pillow knows.") from None
    except UnreadableImageError:
        raise
    except Exception as error:  # decoders raise whatever they like on damaged bytes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImageError(f"{name} cannot be decoded: {reason}.") from None


def _check_size(picture: Any, name: str) -> None:
    """Refuse what would fill the memory; Pillow itself only warns."""
    from PIL import Image

    width, height = picture.size
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise UnreadableImageError(
            f"{name} has {width} x {height} pixels, more than the {limit:,} that Pillow allows; "
            "scale it down, or raise PIL.Image.MAX_IMAGE_PIXELS."
        )


def _bytes_of(path: Path, name: str) -> bytes:
    """The bytes of a regular file: nothing else is opened, and nothing that fills the memory."""
    if not path.exists():
        raise UnreadableImageError(f"{name} does not exist.")
    try:
        require_file(path, "the picture")
    except ValueError as error:
        raise UnreadableImageError(str(error)) from None
    if path.stat().st_size > _MOST_BYTES:
        raise UnreadableImageError(f"{name} has more than the {_MOST_BYTES:,} bytes allowed.")
    return path.read_bytes()


def to_rgb(picture: Any, name: str) -> Any:
    """Any decoded picture as RGB, on white.

    Raises:
        UnreadableImageError: pixels that are NaN, infinite, negative or out of range.
    """
    from PIL import Image

    if picture.mode in _DEEP_MODES:
        sixteen = picture.mode.startswith("I;16") or picture.format == "PNG"
        values = _eight_bits(np.asarray(picture), sixteen, name)
        return Image.fromarray(values).convert("RGB")
    has_alpha = picture.mode in ("RGBA", "LA", "PA", "La", "RGBa")
    if has_alpha or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture.convert("RGB")


def _eight_bits(values: np.ndarray, sixteen: bool, name: str) -> np.ndarray:
    """Deep pixels as uint8."""
    low, high = float(values.min(initial=0)), float(values.max(initial=0))
    if not np.isfinite(low + high):
        count = int((~np.isfinite(values)).sum())
        raise UnreadableImageError(f"{name} has {count:,} pixels that are NaN or infinite.")
    steps = (1.0, 255.0) if values.dtype.kind == "f" else (255.0, 65535.0)
    top = 65535.0 if sixteen else next((step for step in steps if high <= step), 0.0)
    if low < 0 or not top:
        raise UnreadableImageError(
            f"{name} has pixels from {low:g} to {high:g}; they must lie between 0 and "
            f"{steps[0]:g} or {steps[1]:g}."
        )
    return (values * (255.0 / top)).round().astype(np.uint8)


def resize_and_crop(picture: Any, size: int, *, crop_share: float = 1.0) -> np.ndarray:
    """Scale the shorter side to size / crop_share and cut the centre: uint8 (size, size, 3)."""
    from PIL import Image

    width, height = picture.size
    if (width, height) != (size, size) or crop_share != 1.0:
        scale = size / crop_share / min(width, height)
        wide, high = (max(size, round(side * scale)) for side in (width, height))
        filter_ = Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS
        picture = picture.resize((wide, high), filter_)
        left, top = (wide - size) // 2, (high - size) // 2
        picture = picture.crop((left, top, left + size, top + size))
    return np.array(picture, dtype=np.uint8)


def load_square(source: PictureSource, size: int, name: str = "") -> np.ndarray:
    """`read_picture` and `resize_and_crop` in one: uint8 (size, size, 3)."""
    return resize_and_crop(read_picture(source, name), size)


def try_square(job: tuple[PictureSource, int, str]) -> np.ndarray | str:
    """`load_square` for a pool of workers: the pixels, or what is wrong with the file."""
    source, size, name = job
    try:
        return load_square(source, size, name)
    except UnreadableImageError as error:
        return str(error)
